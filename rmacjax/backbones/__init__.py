"""Backbones: convolutional networks that turn an image into an activation map.

A network is data to everyone else: a table of layers (`ARCHITECTURES`), a few static facts
(`Network`) and a flat dictionary of weights. One Flax module interprets the table, so training,
describing and re-ranking share one forward pass, and images of different sizes share a batch
exactly (`rmacjax.backbones.running` tells how).

References: Tolias et al., ICLR 2016, section 3 (which layer is taken); the networks' own are in
`rmacjax.backbones.architectures`.
"""

from rmacjax.backbones.architectures import ARCHITECTURES, Architecture
from rmacjax.backbones.layers import (
    Convolution,
    Fire,
    Layer,
    MaxPool,
    Residual,
    ResponseNormalization,
)
from rmacjax.backbones.network import (
    CAFFE_CONVENTION,
    TORCHVISION_CONVENTION,
    InputConvention,
    Network,
    map_size,
    minimum_size,
    stride,
    weight_shapes,
)
from rmacjax.backbones.running import Weights, forward, initialize, input_means

__all__ = [
    "ARCHITECTURES",
    "CAFFE_CONVENTION",
    "TORCHVISION_CONVENTION",
    "Architecture",
    "Convolution",
    "Fire",
    "InputConvention",
    "Layer",
    "MaxPool",
    "Network",
    "Residual",
    "ResponseNormalization",
    "Weights",
    "forward",
    "initialize",
    "input_means",
    "map_size",
    "minimum_size",
    "stride",
    "weight_shapes",
]
