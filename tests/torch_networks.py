"""The backbones once more, written out in PyTorch: an independent opinion on every activation."""

import numpy as np
import torch
import torch.nn.functional as F
import torch_resnets

VGG16 = {
    f"conv{block}_{i}": (inputs if i == 1 else outputs, outputs)
    for block, depth, inputs, outputs in (
        (1, 2, 3, 64),
        (2, 2, 64, 128),
        (3, 3, 128, 256),
        (4, 3, 256, 512),
        (5, 3, 512, 512),
    )
    for i in range(1, depth + 1)
}
FIRES = {
    "fire2": (64, 16, 64),
    "fire3": (128, 16, 64),
    "fire4": (128, 32, 128),
    "fire5": (256, 32, 128),
    "fire6": (256, 48, 192),
    "fire7": (384, 48, 192),
    "fire8": (384, 64, 256),
    "fire9": (512, 64, 256),
}
KERNELS = {  # OIHW
    "vgg16": {name: (o, i, 3, 3) for name, (i, o) in VGG16.items()},
    "alexnet": {
        "conv1": (64, 3, 11, 11),
        "conv2": (192, 64, 5, 5),
        "conv3": (384, 192, 3, 3),
        "conv4": (256, 384, 3, 3),
        "conv5": (256, 256, 3, 3),
    },
    "alexnet-caffe": {
        "conv1": (96, 3, 11, 11),
        "conv2": (256, 48, 5, 5),
        "conv3": (384, 256, 3, 3),
        "conv4": (384, 192, 3, 3),
        "conv5": (256, 192, 3, 3),
    },
    "squeezenet1_1": {
        "conv1": (64, 3, 3, 3),
        **{
            f"{fire}.{part}": shape
            for fire, (i, s, e) in FIRES.items()
            for part, shape in (
                ("squeeze", (s, i, 1, 1)),
                ("expand1x1", (e, s, 1, 1)),
                ("expand3x3", (e, s, 3, 3)),
            )
        },
    },
}
KERNELS["alexnet-2012"] = KERNELS["alexnet-caffe"]
KERNELS |= {name: torch_resnets.kernels(name) for name in torch_resnets.DEPTHS}
# Where torchvision keeps each layer.
TORCHVISION = {
    "vgg16": dict(zip(VGG16, (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), strict=True)),
    "alexnet": {"conv1": 0, "conv2": 3, "conv3": 6, "conv4": 8, "conv5": 10},
    "squeezenet1_1": {"conv1": 0} | dict(zip(FIRES, (3, 4, 6, 7, 9, 10, 11, 12), strict=True)),
}


def random_weights(architecture: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Kernels (OIHW) and biases by our layer names: "conv1.weight", "conv1.bias", ..."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in KERNELS[architecture].items():
        deviation = np.float32(np.sqrt(2 / np.prod(shape[1:])))
        weights[f"{name}.weight"] = rng.standard_normal(shape, dtype=np.float32) * deviation
        weights[f"{name}.bias"] = rng.standard_normal(shape[0], dtype=np.float32) / 10
    return weights


def torchvision_names(architecture: str, weights: dict) -> dict:
    """The same under torchvision's names, with a scrap of a classifier."""
    renamed = {}
    for name, value in weights.items():
        layer, _, rest = name.partition(".")
        renamed[f"features.{TORCHVISION[architecture][layer]}.{rest}"] = value
    return renamed | {"classifier.1.weight": np.ones((2, 3), np.float32)}


def activations(
    architecture: str, weights: dict[str, np.ndarray], images: np.ndarray, last_pool: bool
) -> np.ndarray:
    """Activation maps (n, h, w, c) of uint8 RGB images (n, H, W, 3)."""
    w = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in weights.items()}
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    if architecture in ("vgg16-caffe", "alexnet-caffe", "alexnet-2012"):
        x = pixels.flip(1) - torch.tensor([103.939, 116.779, 123.68]).view(1, 3, 1, 1)
    else:
        mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
        std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
        x = (pixels / 255 - mean) / std

    def conv(x, name, **options):
        return F.relu(F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], **options))

    def pool(x, **options):
        return F.max_pool2d(x, 3, 2, **options)

    match architecture:
        case "vgg16" | "vgg16-caffe":
            for name in VGG16:
                if name.endswith("_1") and name != "conv1_1":
                    x = F.max_pool2d(x, 2)
                x = conv(x, name, padding=1)
            x = F.max_pool2d(x, 2) if last_pool else x
        case "alexnet":
            x = pool(conv(x, "conv1", stride=4, padding=2))
            x = pool(conv(x, "conv2", padding=2))
            for name in ("conv3", "conv4", "conv5"):
                x = conv(x, name, padding=1)
            x = pool(x) if last_pool else x
        case "alexnet-caffe":
            x = pool(conv(x, "conv1", stride=4), ceil_mode=True)
            x = F.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=1.0)
            x = pool(conv(x, "conv2", padding=2, groups=2), ceil_mode=True)
            x = F.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=1.0)
            x = conv(x, "conv3", padding=1)
            x = conv(x, "conv4", padding=1, groups=2)
            x = conv(x, "conv5", padding=1, groups=2)
            x = pool(x, ceil_mode=True) if last_pool else x
        case "alexnet-2012":
            x = F.local_response_norm(conv(x, "conv1", stride=4), 5, alpha=1e-4, beta=0.75, k=1.0)
            x = conv(pool(x, ceil_mode=True), "conv2", padding=2, groups=2)
            x = F.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=1.0)
            x = conv(pool(x, ceil_mode=True), "conv3", padding=1)
            x = conv(x, "conv4", padding=1, groups=2)
            x = conv(x, "conv5", padding=1, groups=2)
            x = pool(x, ceil_mode=True) if last_pool else x
        case "squeezenet1_1":
            x = pool(conv(x, "conv1", stride=2), ceil_mode=True)
            for fire in FIRES:
                if fire in ("fire4", "fire6"):
                    x = pool(x, ceil_mode=True)
                s = conv(x, f"{fire}.squeeze")
                x = torch.cat(
                    [conv(s, f"{fire}.expand1x1"), conv(s, f"{fire}.expand3x3", padding=1)], 1
                )
    return x.permute(0, 2, 3, 1).numpy()
