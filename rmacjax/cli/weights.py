"""`rmacjax weights convert`, `fetch` and `show`."""

import os
from collections.abc import Mapping
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from rmacjax.cli.terminal import (
    Flag,
    JsonFile,
    check_writable,
    prepare,
    progress,
    say,
    tell,
    write_json,
)

Source = Annotated[Positional[str], arg(metavar="SOURCE")]
Shown = Annotated[Positional[str], arg(metavar="NAME|FILE")]


def convert(
    source: Source,
    out: Annotated[Positional[str], arg(metavar="OUT")],
    *,
    architecture: Annotated[
        str | None, arg(metavar="NAME", help_behavior_hint="(default: found out)")
    ] = None,
    learned_whitening: Annotated[
        str | None, arg(metavar="NAME", help_behavior_hint="(default: none)")
    ] = None,
    scales: Literal["single", "multi"] = "single",
    half: Flag = False,
    licence: Annotated[str, arg(metavar="TEXT", help_behavior_hint="")] = "unknown",
    json: JsonFile = None,
) -> None:
    """Turn a file of another program into a weights file.

    Reads PyTorch checkpoints (those of cnnimageretrieval-pytorch with their pooling and whitening),
    .safetensors, Keras' VGG16 .h5, MatConvNet's .mat, Caffe's .caffemodel and NumPy's .npz, finds
    out which network it is and what it expects of a pixel. No code in such a file is run.

    Networks: vgg16, alexnet, alexnet-caffe, alexnet-2012, squeezenet1_1, resnet18, resnet18-layer3,
    resnet34, resnet50, resnet101, resnet50-caffe, resnet101-caffe. Batch normalization becomes
    part of the convolutions.

    For example:

        rmacjax weights convert vgg16-397923af.pth vgg16.safetensors
        rmacjax weights convert mine.pt mine.safetensors --architecture resnet50-caffe
        rmacjax weights convert gem.pth gem.safetensors --learned-whitening retrieval-SfM-120k
        rmacjax index ~/Pictures holiday --weights mine.safetensors

    Args:
        source: The other program's file.
        out: The weights file to write.
        architecture: The network, where the file leaves doubt.
        learned_whitening: Of a retrieval network's whitenings, the one to keep.
        scales: Of that, the one for images at a single scale or at multi(ple) ones.
        half: Keep the numbers in half precision: half the size.
        licence: Under which terms the weights may be used, to be written into the file.
        json: Write what the file holds as JSON to this file, "-" for stdout.
    """
    check_writable(out, json)
    if os.path.exists(source) and os.path.exists(out) and os.path.samefile(source, out):
        raise ValueError(f"{out!r} is the file to convert: name another one to write")
    prepare()
    from rmacjax.weights import convert_file, describe_file, save

    converted = convert_file(
        source,
        architecture=architecture,
        learned_whitening=learned_whitening,
        scales=scales,
    )
    dtype: Literal["float16", "float32"] = "float16" if half else "float32"
    path = save(
        out,
        converted.params,
        origin=converted.origin,
        licence=licence,
        dtype=dtype,
        made_by="rmacjax weights convert",
        source_sha256=converted.source_sha256,
        whitening_origin=converted.whitening_origin,
        settings=converted.settings,
    )
    say(f"Wrote {out}")
    if converted.learned and converted.params.whitening is None:
        say(f"Not whitened; there are: {', '.join(converted.learned)} (--learned-whitening)")
    _show(describe_file(path), json)


def fetch(
    name: Annotated[Positional[str], arg(metavar="NAME")],
    *,
    folder: Annotated[
        str | None, arg(metavar="DIR", help_behavior_hint="(default: where names are looked up)")
    ] = None,
    url: Annotated[str | None, arg(metavar="URL", help_behavior_hint="")] = None,
    json: JsonFile = None,
) -> None:
    """Download a network's published weights.

    They are checked against their makers' checksum, converted and kept; from then on every command
    finds them by their name. Names: vgg16 (59 MB), vgg16-torchvision (553 MB), alexnet (244 MB),
    squeezenet1_1 (5 MB), resnet18 (47 MB), resnet34 (87 MB), resnet50 (103 MB), resnet101 (179 MB).

    For example:

        rmacjax weights fetch vgg16
        rmacjax weights fetch squeezenet1_1 --folder ~/nets
        rmacjax index ~/Pictures holiday --weights vgg16

    Args:
        name: Which network.
        folder: Where to keep it.
        url: Where to get it from instead; the checksum must be right all the same.
        json: Write what the file holds as JSON to this file, "-" for stdout.
    """
    check_writable(json)
    prepare()
    from rmacjax.weights import describe_file
    from rmacjax.weights import fetch as fetch_weights

    say(f"Fetching {name}")
    with progress("bytes") as update:
        path = fetch_weights(name, folder, url=url, progress=update)
    say(f"Wrote {path}")
    _show(describe_file(path), json)


def show(file: Shown, *, json: JsonFile = None) -> None:
    """Say what is in a weights file.

    Network, input convention, whitening, where it comes from and its licence. Files of other
    programs are told apart too.

    For example:

        rmacjax weights show default
        rmacjax weights show mine.safetensors --json -

    Args:
        file: A name, or a file.
        json: Write it as JSON to this file, "-" for stdout.
    """
    check_writable(json)
    prepare()
    from rmacjax.weights import describe_file

    _show(describe_file(file), json)


def _show(facts: Mapping[str, object], json: str | None) -> None:
    if json is not None:
        write_json(json, facts)
    if json == "-":
        return
    lines = dict(_flat(facts))
    width = max(map(len, lines))
    for name, value in lines.items():
        tell(f"{name:<{width}}  {value}")


def _flat(facts: Mapping[str, object]) -> list[tuple[str, str]]:
    """Facts as lines: nested ones with their names joined, empty ones left out."""
    lines = []
    for name, value in facts.items():
        words = name.replace("_", " ")
        if isinstance(value, Mapping):
            lines += [(f"{words} {inner}", text) for inner, text in _flat(value)]
        elif isinstance(value, (list, tuple)):
            lines.append((words, ", ".join(map(str, value)) or "none"))
        elif value is None:
            lines.append((words, "none"))
        elif value != "":
            lines.append((words, os.fsdecode(value) if isinstance(value, bytes) else str(value)))
    return lines
