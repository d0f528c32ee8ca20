"""Writing Caffe's binary networks with Google's protobuf, from the published field numbers.

tensorflow-datasets brings protobuf; the package itself does without.
"""

import functools

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_TYPES = {"int32": 5, "int64": 3, "float": 2, "double": 1, "string": 9, "message": 11}
_MESSAGES = {  # name: (field, number, type, repeated, packed)
    "BlobShape": [("dim", 1, "int64", True, True)],
    "BlobProto": [
        ("num", 1, "int32", False, False),
        ("channels", 2, "int32", False, False),
        ("height", 3, "int32", False, False),
        ("width", 4, "int32", False, False),
        ("data", 5, "float", True, True),
        ("diff", 6, "float", True, True),
        ("shape", 7, "BlobShape", False, False),
        ("double_data", 8, "double", True, True),
    ],
    "LayerParameter": [
        ("name", 1, "string", False, False),
        ("type", 2, "string", False, False),
        ("bottom", 3, "string", True, False),
        ("top", 4, "string", True, False),
        ("blobs", 7, "BlobProto", True, False),
    ],
    "V1LayerParameter": [
        ("bottom", 2, "string", True, False),
        ("top", 3, "string", True, False),
        ("name", 4, "string", False, False),
        ("type", 5, "int32", False, False),  # an enumeration, which is written alike
        ("blobs", 6, "BlobProto", True, False),
        ("blobs_lr", 7, "float", True, False),
    ],
    "NetParameter": [
        ("name", 1, "string", False, False),
        ("layers", 2, "V1LayerParameter", True, False),
        ("input", 3, "string", True, False),
        ("input_dim", 4, "int32", True, False),
        ("layer", 100, "LayerParameter", True, False),
    ],
}
V1_KINDS = {"Convolution": 4, "InnerProduct": 14, "LRN": 15, "Pooling": 17, "ReLU": 18}


@functools.cache
def _net():
    file = descriptor_pb2.FileDescriptorProto(name="caffe_subset.proto", package="caffe")
    for message, fields in _MESSAGES.items():
        kind = file.message_type.add(name=message)
        for name, number, type_, repeated, packed in fields:
            field = kind.field.add(name=name, number=number, label=3 if repeated else 1)
            field.type = _TYPES.get(type_, _TYPES["message"])
            if type_ not in _TYPES:
                field.type_name = f".caffe.{type_}"
            if packed:
                field.options.packed = True
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe.NetParameter"))


def caffemodel(layers, *, v1=False, double=False, name="a net"):
    """Bytes of a network; `layers` are (name, kind, arrays)."""
    net = _net()(name=name)
    for layer_name, kind, arrays in layers:
        layer = (net.layers if v1 else net.layer).add(name=layer_name)
        layer.type = V1_KINDS[kind] if v1 else kind
        layer.bottom.append("data")
        layer.top.append(layer_name)
        if v1 and arrays:
            layer.blobs_lr.extend([1.0, 2.0])
        for array in arrays:
            blob = layer.blobs.add()
            if v1:
                sizes = (1,) * (4 - array.ndim) + array.shape
                blob.num, blob.channels, blob.height, blob.width = sizes
            else:
                blob.shape.dim.extend(array.shape)
            (blob.double_data if double else blob.data).extend(np.ravel(array).tolist())
    return net.SerializeToString()
