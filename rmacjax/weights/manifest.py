"""The networks that go by a name: where each comes from, its checksum and its licence."""

import os
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import pooch

FOLDER_VARIABLE = "RMACJAX_WEIGHTS"
PACKAGED = ("default", "vgg16-scenes")
CONVERTED_ONLY = ("alexnet-caffe", "alexnet-2012", "resnet50-caffe", "resnet101-caffe")


class Published(NamedTuple):
    """A file that its makers publish.

    Attributes:
        architecture: a key of `rmacjax.backbones.ARCHITECTURES`.
        urls: where it lies, tried in this order.
        checksum: what its makers say of it: "md5:" or "sha256:" and hexadecimal digits, of which
            the first few are enough.
        megabytes: how much is downloaded.
        licence: under which terms.
        needs_h5py: whether reading it takes the extra `keras`.
    """

    architecture: str
    urls: tuple[str, ...]
    checksum: str
    megabytes: int
    licence: str
    needs_h5py: bool = False


_TORCHVISION_LICENCE = "BSD-3-Clause (torchvision); trained on ImageNet"

PUBLISHED = MappingProxyType(
    {
        "vgg16": Published(
            "vgg16",
            (
                "https://github.com/fchollet/deep-learning-models/releases/download/v0.1/"
                "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
                "https://storage.googleapis.com/tensorflow/keras-applications/vgg16/"
                "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
            ),
            "md5:6d6bbae143d832006294945121d1f1fc",
            59,
            "CC-BY-4.0 (Visual Geometry Group, Oxford); ported by Keras; trained on ImageNet",
            needs_h5py=True,
        ),
        "vgg16-torchvision": Published(
            "vgg16",
            ("https://download.pytorch.org/models/vgg16-397923af.pth",),
            "sha256:397923af",
            553,
            _TORCHVISION_LICENCE,
        ),
        "alexnet": Published(
            "alexnet",
            ("https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",),
            "sha256:7be5be79",
            244,
            _TORCHVISION_LICENCE,
        ),
        "squeezenet1_1": Published(
            "squeezenet1_1",
            ("https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth",),
            "sha256:b8a52dc0",
            5,
            _TORCHVISION_LICENCE,
        ),
        # The first weights that torchvision published of each (IMAGENET1K_V1).
        **{
            name: Published(
                name,
                (f"https://download.pytorch.org/models/{name}-{digits}.pth",),
                f"sha256:{digits}",
                megabytes,
                _TORCHVISION_LICENCE,
            )
            for name, digits, megabytes in (
                ("resnet18", "f37072fd", 47),
                ("resnet34", "b627a593", 87),
                ("resnet50", "0676ba61", 103),
                ("resnet101", "63fe2227", 179),
            )
        },
    }
)

NAMES = (*PACKAGED, *PUBLISHED, *CONVERTED_ONLY)


def weights_folder() -> Path:
    """Folder of fetched and converted networks: `RMACJAX_WEIGHTS`, else the platform's cache."""
    return Path(os.environ.get(FOLDER_VARIABLE) or pooch.os_cache("rmacjax") / "weights")


def find_named(name: str) -> Path:
    """Find the file of a network that goes by a name.

    Args:
        name: one of `NAMES`.

    Returns:
        The file's path.

    Raises:
        FileNotFoundError: if it is not there; the sentence says how to get it.
    """
    if name in PACKAGED:
        package = Path(__file__).resolve().parents[1]
        places = [
            folder / f"{name}.safetensors"
            for folder in (package / "_weights", package.parent / "weights")
        ]
        for place in places:
            if place.is_file():
                return place
        raise FileNotFoundError(
            f"{name}, which ships, is not in {places[0].parent}; install rmacjax again"
        )
    path = weights_folder() / f"{name}.safetensors"
    if path.is_file():
        return path
    if name in CONVERTED_ONLY:
        raise FileNotFoundError(
            f"there is no {path}; nobody publishes {name} in a form to fetch: convert a file of it "
            f"with `rmacjax weights convert SOURCE {path}`"
        )
    raise FileNotFoundError(f"there is no {path}; get it with `rmacjax weights fetch {name}`")
