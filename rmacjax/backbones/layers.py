"""Layers as data: what a network is made of, and what each layer does to a map's size."""

import math
from typing import Any, NamedTuple


class Convolution(NamedTuple):
    """A square convolution with bias, followed by a ReLU."""

    name: str
    features: int
    kernel: int
    stride: int = 1
    padding: int = 0
    groups: int = 1


class Fire(NamedTuple):
    """SqueezeNet's block: a 1 x 1 squeeze, then 1 x 1 and 3 x 3 expansions side by side."""

    name: str
    squeeze: int
    expand: int


class Residual(NamedTuple):
    """ResNet's block: `relu(branch(x) + shortcut(x))`, a ReLU between the branch's convolutions.

    Batch normalization is part of the convolutions' kernels and biases. `shortcut` is None where
    the block's input is added as it is.
    """

    name: str
    branch: tuple[Convolution, ...]
    shortcut: Convolution | None = None

    @property
    def convolutions(self) -> tuple[Convolution, ...]:
        """The branch's convolutions, then the shortcut's."""
        return self.branch if self.shortcut is None else (*self.branch, self.shortcut)

    @property
    def stride(self) -> int:
        """Of the whole block."""
        return math.prod(convolution.stride for convolution in self.branch)


class MaxPool(NamedTuple):
    """A square maximum; `ceil` lets the last window hang over the border, as Caffe does.

    Windows are wider than their stride, so with `ceil` the last one still starts inside. Padding
    never counts: a window's maximum is that of its cells inside the map.
    """

    window: int
    stride: int
    ceil: bool = False
    padding: int = 0


class ResponseNormalization(NamedTuple):
    """Local response normalization across channels: `x / (k + alpha / size * sum x^2) ** beta`."""

    size: int = 5
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 1.0


Layer = Convolution | Fire | Residual | MaxPool | ResponseNormalization


class Step(NamedTuple):
    """How a window goes over a map; `padding` on either side."""

    window: int
    stride: int
    padding: int
    ceil: bool


def steps(layer: Layer) -> tuple[Step, ...]:
    """The windows that change a map's size, one after the other; none where the size stays."""
    match layer:
        case Convolution(kernel=kernel, stride=stride, padding=padding):
            return (Step(kernel, stride, padding, False),)
        case Residual(branch=branch):
            return tuple(step for convolution in branch for step in steps(convolution))
        case MaxPool(window=window, stride=stride, ceil=ceil, padding=padding):
            return (Step(window, stride, padding, ceil),)
        case _:
            return ()


def output_size(layer: Layer, size: Any) -> Any:
    """Cells after a layer along one axis, for Python integers and for traced arrays alike."""
    for step in steps(layer):
        over = step.stride - 1 if step.ceil else 0
        size = (size + 2 * step.padding - step.window + over) // step.stride + 1
    return size


def input_size(layer: Layer, size: int) -> int:
    """The fewest cells along one axis that give `size` cells after a layer."""
    for step in reversed(steps(layer)):
        # Ceil mode forgives all but one pixel of the stride.
        over = step.stride - 1 if step.ceil else 0
        size = max((size - 1) * step.stride + step.window - 2 * step.padding - over, 1)
    return size


def kernels(layer: Layer, inputs: int) -> dict[str, tuple[int, int, int, int]]:
    """Names and shapes (HWIO) of a layer's convolutions, for so many channels coming in."""
    match layer:
        case Convolution(name=name, features=features, kernel=kernel, groups=groups):
            return {name: (kernel, kernel, inputs // groups, features)}
        case Fire(name=name, squeeze=squeeze, expand=expand):
            return {
                f"{name}.squeeze": (1, 1, inputs, squeeze),
                f"{name}.expand1x1": (1, 1, squeeze, expand),
                f"{name}.expand3x3": (3, 3, squeeze, expand),
            }
        case Residual(name=name, branch=branch, shortcut=shortcut):
            shapes, before = {}, inputs
            for convolution in branch:
                for part, shape in kernels(convolution, before).items():
                    shapes[f"{name}.{part}"] = shape
                before = convolution.features
            if shortcut is not None:
                for part, shape in kernels(shortcut, inputs).items():
                    shapes[f"{name}.{part}"] = shape
            return shapes
        case _:
            return {}


def channels(layer: Layer, inputs: int) -> int:
    """Channels that come out of a layer, for so many coming in."""
    match layer:
        case Convolution(features=features):
            return features
        case Fire(expand=expand):
            return 2 * expand
        case Residual(branch=branch):
            return branch[-1].features
        case _:
            return inputs
