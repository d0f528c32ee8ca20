"""Writing Caffe's binary networks with Google's protobuf, from the published field numbers.

tensorflow-datasets brings protobuf; the package itself does without.
"""

import functools

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_TYPES = {"int32": 5, "int64": 3, "float": 2, "double": 1, "string": 9, "message": 11}
_MESSAGES = """
BlobShape: packed int64 dim 1
BlobProto: int32 num 1, int32 channels 2, int32 height 3, int32 width 4, packed float data 5,
    packed float diff 6, BlobShape shape 7, packed double double_data 8
LayerParameter: string name 1, string type 2, repeated string bottom 3, repeated string top 4,
    repeated BlobProto blobs 7
V1LayerParameter: repeated string bottom 2, repeated string top 3, string name 4, int32 type 5,
    repeated BlobProto blobs 6, repeated float blobs_lr 7
NetParameter: string name 1, repeated V1LayerParameter layers 2, repeated string input 3,
    repeated int32 input_dim 4, repeated LayerParameter layer 100
"""  # the older layer's type is an enumeration, which is written like an int32
V1_KINDS = {"Convolution": 4, "InnerProduct": 14, "LRN": 15, "Pooling": 17, "ReLU": 18}


@functools.cache
def _net():
    file = descriptor_pb2.FileDescriptorProto(name="caffe_subset.proto", package="caffe")
    for line in _MESSAGES.replace(",\n", ",").strip().splitlines():
        message, fields = line.split(": ")
        kind = file.message_type.add(name=message)
        for words in map(str.split, fields.split(",")):
            *how, type_, name, number = words
            field = kind.field.add(name=name, number=int(number), label=3 if how else 1)
            field.type = _TYPES.get(type_, _TYPES["message"])
            if type_ not in _TYPES:
                field.type_name = f".caffe.{type_}"
            if how == ["packed"]:
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
