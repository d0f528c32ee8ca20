"""The networks, as tables of layers.

References: Simonyan & Zisserman 2015 (VGG16); Krizhevsky et al. 2012 and 2014 (AlexNet, and its
shapes in Caffe and in torchvision); Iandola et al. 2016 (SqueezeNet); He et al. 2016 (ResNet).
"""

from dataclasses import dataclass
from types import MappingProxyType

from rmacjax.backbones.layers import (
    Convolution,
    Fire,
    Layer,
    MaxPool,
    Residual,
    ResponseNormalization,
)


@dataclass(frozen=True)
class Architecture:
    """The layers of a network up to the one whose output is the activation map."""

    layers: tuple[Layer, ...]
    channels: int

    @property
    def ends_with_pool(self) -> bool:
        """Whether there is a last pool to keep or to leave out."""
        return isinstance(self.layers[-1], MaxPool)


def _vgg16() -> Architecture:
    layers: list[Layer] = []
    for block, (depth, features) in enumerate(
        ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)), start=1
    ):
        layers += [
            Convolution(f"conv{block}_{i}", features, kernel=3, padding=1)
            for i in range(1, depth + 1)
        ]
        layers.append(MaxPool(2, 2))
    return Architecture(tuple(layers), channels=512)


def _alexnet_of_caffe(*, normalize_first: bool) -> Architecture:
    pool = MaxPool(3, 2, ceil=True)
    between = (
        (ResponseNormalization(), pool) if normalize_first else (pool, ResponseNormalization())
    )
    return Architecture(
        (
            Convolution("conv1", 96, kernel=11, stride=4),
            *between,
            Convolution("conv2", 256, kernel=5, padding=2, groups=2),
            *between,
            Convolution("conv3", 384, kernel=3, padding=1),
            Convolution("conv4", 384, kernel=3, padding=1, groups=2),
            Convolution("conv5", 256, kernel=3, padding=1, groups=2),
            pool,
        ),
        channels=256,
    )


def _squeezenet() -> Architecture:
    pool = MaxPool(3, 2, ceil=True)
    return Architecture(
        (
            Convolution("conv1", 64, kernel=3, stride=2),
            pool,
            Fire("fire2", 16, 64),
            Fire("fire3", 16, 64),
            pool,
            Fire("fire4", 32, 128),
            Fire("fire5", 32, 128),
            pool,
            Fire("fire6", 48, 192),
            Fire("fire7", 48, 192),
            Fire("fire8", 64, 256),
            Fire("fire9", 64, 256),
        ),
        channels=512,
    )


def _resnet(depths: tuple[int, ...], *, bottleneck: bool, caffe: bool = False) -> Architecture:
    """A ResNet to the end of its last stage: stride 16 after three stages, 32 after four.

    Args:
        depths: blocks of each stage.
        bottleneck: blocks of 1 x 1, 3 x 3 and 1 x 1 convolutions, or of two 3 x 3.
        caffe: the authors' own: a stage's stride sits in its first 1 x 1, and the first pool has
            no padding and hangs over the border. Else torchvision's: the stride sits in the first
            3 x 3, and the first pool is padded by one.
    """
    layers: list[Layer] = [
        Convolution("conv1", 64, kernel=7, stride=2, padding=3),
        MaxPool(3, 2, ceil=True) if caffe else MaxPool(3, 2, padding=1),
    ]
    inputs = 64
    for stage, depth in enumerate(depths, start=1):
        width = 32 * 2**stage
        outputs = 4 * width if bottleneck else width
        for block in range(depth):
            stride = 2 if block == 0 and stage > 1 else 1
            if bottleneck:
                first, second = (stride, 1) if caffe else (1, stride)
                branch: tuple[Convolution, ...] = (
                    Convolution("conv1", width, kernel=1, stride=first),
                    Convolution("conv2", width, kernel=3, stride=second, padding=1),
                    Convolution("conv3", outputs, kernel=1),
                )
            else:
                branch = (
                    Convolution("conv1", width, kernel=3, stride=stride, padding=1),
                    Convolution("conv2", outputs, kernel=3, padding=1),
                )
            changes = stride > 1 or inputs != outputs
            shortcut = Convolution("shortcut", outputs, kernel=1, stride=stride)
            layers.append(Residual(f"layer{stage}_{block}", branch, shortcut if changes else None))
            inputs = outputs
    return Architecture(tuple(layers), channels=inputs)


ARCHITECTURES = MappingProxyType(
    {
        "vgg16": _vgg16(),
        "alexnet": Architecture(  # as torchvision has it: one tower, no normalization
            (
                Convolution("conv1", 64, kernel=11, stride=4, padding=2),
                MaxPool(3, 2),
                Convolution("conv2", 192, kernel=5, padding=2),
                MaxPool(3, 2),
                Convolution("conv3", 384, kernel=3, padding=1),
                Convolution("conv4", 256, kernel=3, padding=1),
                Convolution("conv5", 256, kernel=3, padding=1),
                MaxPool(3, 2),
            ),
            channels=256,
        ),
        "alexnet-caffe": _alexnet_of_caffe(normalize_first=False),  # CaffeNet
        "alexnet-2012": _alexnet_of_caffe(normalize_first=True),  # Caffe's bvlc_alexnet
        "squeezenet1_1": _squeezenet(),
        "resnet18": _resnet((2, 2, 2, 2), bottleneck=False),
        "resnet18-layer3": _resnet((2, 2, 2), bottleneck=False),
        "resnet34": _resnet((3, 4, 6, 3), bottleneck=False),
        "resnet50": _resnet((3, 4, 6, 3), bottleneck=True),
        "resnet101": _resnet((3, 4, 23, 3), bottleneck=True),
        "resnet50-caffe": _resnet((3, 4, 6, 3), bottleneck=True, caffe=True),
        "resnet101-caffe": _resnet((3, 4, 23, 3), bottleneck=True, caffe=True),
    }
)
