"""ResNets in torch.nn, with batch normalization, under torchvision's names: an independent opinion.

He et al. 2016, table 1. `caffe=True` is the authors' own variant: strides in the first 1 x 1 of a
stage, a first pool without padding whose last window may hang over the border.
"""

import numpy as np
import torch
from torch import nn

DEPTHS = {
    "resnet18": (2, 2, 2, 2),
    "resnet18-layer3": (2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet50-caffe": (3, 4, 6, 3),
    "resnet101-caffe": (3, 4, 23, 3),
}


class Block(nn.Module):
    """One residual block; `sizes` are (kernel, channels, stride) of its branch."""

    def __init__(self, inputs, sizes, stride):
        super().__init__()
        self.depth = len(sizes)
        before = inputs
        for i, (kernel, width, step) in enumerate(sizes, start=1):
            conv = nn.Conv2d(before, width, kernel, step, padding=kernel // 2, bias=False)
            setattr(self, f"conv{i}", conv)
            setattr(self, f"bn{i}", nn.BatchNorm2d(width))
            before = width
        self.downsample = None
        if stride != 1 or inputs != before:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, before, 1, stride, bias=False), nn.BatchNorm2d(before)
            )

    def forward(self, x):
        y = x
        for i in range(1, self.depth + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = torch.relu(y) if i < self.depth else y
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self, architecture):
        super().__init__()
        caffe = architecture.endswith("-caffe")
        deep = architecture.startswith(("resnet50", "resnet101"))
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True) if caffe else nn.MaxPool2d(3, 2, padding=1)
        inputs = 64
        self.stages = []
        for stage, depth in enumerate(DEPTHS[architecture]):
            width = 64 * 2**stage
            blocks = []
            for i in range(depth):
                s = 2 if stage > 0 and i == 0 else 1
                if deep:
                    a, b = (s, 1) if caffe else (1, s)
                    sizes = [(1, width, a), (3, width, b), (1, 4 * width, 1)]
                else:
                    sizes = [(3, width, s), (3, width, 1)]
                blocks.append(Block(inputs, sizes, s))
                inputs = sizes[-1][1]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
            self.stages.append(f"layer{stage + 1}")

    def forward(self, x):
        x = self.pool(torch.relu(self.bn1(self.conv1(x))))
        for stage in self.stages:
            x = getattr(self, stage)(x)
        return x


def make(architecture, seed=0):
    """A network whose numbers, running statistics among them, are random but tame."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = ResNet(architecture).eval()
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                fan_in = module.weight[0].numel()
                nn.init.normal_(module.weight, std=(2 / fan_in) ** 0.5)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.3, 0.9)
                nn.init.normal_(module.bias, std=0.1)
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network


def activations(network, pixels):
    """Activation maps (n, h, w, c) of prepared pixels (n, H, W, 3)."""
    with torch.no_grad():
        x = torch.from_numpy(np.ascontiguousarray(pixels, np.float32)).permute(0, 3, 1, 2)
        return network(x).permute(0, 2, 3, 1).numpy()


def kernels(architecture):
    """Shapes (OIHW) of the convolutions by our layer names."""
    with torch.device("meta"):
        network = ResNet(architecture)
    shapes = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            layer = name.removesuffix(".0") if name.endswith("downsample.0") else name
            shapes[our_name(layer)] = tuple(module.weight.shape)
    return shapes


def our_name(name):
    """From "layer1.0.downsample" to "layer1_0.shortcut"."""
    if not name.startswith("layer"):
        return name
    stage, block, part = name.split(".")
    return f"{stage}_{block}.{'shortcut' if part == 'downsample' else part}"
