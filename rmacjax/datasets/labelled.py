"""Data sets with labels that tensorflow-datasets prepared, read at random without TensorFlow.

Not loaded by `rmacjax.datasets`, because tensorflow-datasets takes half a second.
"""

import operator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int

__all__ = ["Labelled", "open_labelled"]

_WORDS = ("label", "class", "category", "identity", "landmark")
"""A whole number whose name has one of these is a label, where no feature is a class."""

_AT_ONCE = 256


class Labelled:
    """One split: the bytes of any image, and the labels of all.

    Attributes:
        label_key: the feature that labels are taken from.
        image_key: the feature that images are taken from.
        names: the classes' names; empty where they are only numbers.
    """

    def __init__(self, source: Any, image_key: str, label_key: str, names: list[str]) -> None:
        """Keep what `open_labelled` found."""
        self._source = source
        self.image_key = image_key
        self.label_key = label_key
        self.names = names

    def __len__(self) -> int:
        return len(self._source)

    def labels(self) -> Int[np.ndarray, " m"]:
        """Read the label of every image; no image is decoded.

        Returns:
            (m,) int64; the data set's own numbers.
        """
        found = []
        for start in range(0, len(self), _AT_ONCE):
            some = range(start, min(start + _AT_ONCE, len(self)))
            found += [int(item[self.label_key]) for item in self._source.__getitems__([*some])]
        return np.asarray(found, np.int64)

    def encoded(self, index: int) -> bytes:
        """Return an image's file as it was stored.

        Args:
            index: its number in the split.
        """
        return bytes(self._source[operator.index(index)][self.image_key])


def open_labelled(name: str, split: str = "train", folder: str | None = None) -> Labelled:
    """Open a split of a prepared data set, and find its images and labels.

    Of several classes the one with the most is taken: in ``stanford_online_products`` the product,
    not the kind of product. Where no feature is a class, a whole number counts as a label if it is
    called so.

    Args:
        name: as tensorflow-datasets has it, with configuration and version if wanted.
        split: likewise.
        folder: where data sets are prepared; None: tensorflow-datasets' own folder.

    Raises:
        FileNotFoundError: it has not been prepared, or not as array_record.
        ValueError: there is no such data set or split, or it has no images or no labels.
    """
    try:
        builder = tfds.builder(name, data_dir=folder, file_format="array_record")
    except (tfds.core.registered.DatasetNotFoundError, ValueError) as error:
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"tensorflow-datasets cannot open {name!r} ({said[:200]}): check the name, and "
            "where it was prepared"
        ) from error
    how = (
        f"prepare it once: tfds.builder({name!r}, file_format='array_record')"
        ".download_and_prepare()"
    )
    if not builder.info.splits:
        raise FileNotFoundError(f"{name} is not prepared in {builder.data_path}: {how}")
    if split.partition("[")[0] not in [*builder.info.splits, "all"] and "+" not in split:
        there = ", ".join(builder.info.splits)
        raise ValueError(f"{name} has no split {split!r}; it has {there}")
    stored = getattr(builder.info.file_format, "value", str(builder.info.file_format))
    if stored != "array_record":
        raise FileNotFoundError(f"{name} is stored as {stored}, which needs TensorFlow: {how}")
    features = builder.info.features
    image = _image_key(features, name)
    label = _label_key(features, name)
    decoders = {image: tfds.decode.SkipDecoding()}
    source = builder.as_data_source(split=split, decoders=decoders)
    names = getattr(features[label], "names", None) or []
    return Labelled(source, image, label, list(names))


def _image_key(features: Any, name: str) -> str:
    images = [
        key for key, kind in sorted(features.items()) if isinstance(kind, tfds.features.Image)
    ]
    if not images:
        raise ValueError(
            f"{name} has no images, only {', '.join(sorted(features))}: take another data set"
        )
    return "image" if "image" in images else images[0]


def _label_key(features: Any, name: str) -> str:
    classes = {
        key: kind.num_classes or 0
        for key, kind in sorted(features.items())
        if isinstance(kind, tfds.features.ClassLabel)
    }
    if classes:
        return max(classes, key=lambda key: classes[key])
    for key, kind in sorted(features.items()):
        whole = getattr(kind, "shape", None) == () and np.dtype(kind.np_dtype).kind in "iu"
        if whole and any(word in key.lower() for word in _WORDS):
            return str(key)
    raise ValueError(
        f"{name} has no labels, only {', '.join(sorted(features))}: take a data set with classes, "
        "or learn from views of a folder of photos"
    )
