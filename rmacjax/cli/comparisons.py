"""The ways of searching that `rmacjax evaluate` puts beside each other."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rmacjax.measurement import Way
    from rmacjax.retrieval import Depth, FirstStage

Comparison = Literal["regions", "fused", "alpha-qe", "dba", "diffusion"]

FUSED = 0.5
"""Share of the whole photo in the rows that are called fused."""

ALPHA = 3.0
"""Exponent of alpha query expansion in the row that is called so."""

NEIGHBOURS = 10
"""Nearest photos that join each in the rows that are called DBA."""


def refuse_comparisons(
    also: Sequence[Comparison],
    *,
    rerank: "Depth",
    expand: int,
    fusion: float,
    first_stage: "FirstStage",
) -> None:
    """Refuse comparisons that cannot be made, or are with the same search.

    Args:
        also: what the search is to be compared with.
        rerank: of the search.
        expand: of the search.
        fusion: of the search.
        first_stage: of the search.

    Raises:
        ValueError: naming both options.
    """
    same = {
        "regions": first_stage == "regions" and "--first-stage regions",
        "diffusion": first_stage == "diffusion" and "--first-stage diffusion",
        "fused": fusion == FUSED and f"--fusion {FUSED}",
    }
    for name in also:
        if same.get(name):
            raise ValueError(f"--also {name} is {same[name]} once more: leave one of them out")
        if name == "dba" and first_stage == "regions" and not fusion:
            raise ValueError(
                "--also dba changes the descriptors that photos are ranked by first, and "
                "--first-stage regions ranks them by others: leave one of them out, or let the "
                "whole photo count too (--fusion)"
            )
        if name == "fused" and not rerank:
            raise ValueError("--also fused needs --rerank above 0")
        if name == "alpha-qe" and not (rerank and expand):
            raise ValueError("--also alpha-qe needs --rerank and --expand above 0")


def compared_ways(
    photos: int,
    also: Sequence[Comparison],
    *,
    rerank: "Depth",
    expand: int,
    fusion: float,
    first_stage: "FirstStage",
) -> "list[Way]":
    """The search that was asked for, and those that it is to be compared with.

    Args:
        photos: how many are searched.
        also: what to compare with, see `refuse_comparisons`.
        rerank: of the search, as are the others.
        expand: see there.
        fusion: see there.
        first_stage: see there.
    """
    from rmacjax.measurement import Way

    first = Way(rerank=rerank, expand=expand, fusion=fusion, first_stage=first_stage)
    ways = [first]
    # Where every photo is re-ranked, what comes first decides nothing further on.
    everything = rerank == "all" or rerank >= photos
    later = (lambda name: (name, None, None)) if everything else _three
    filtered = replace(first, rerank=0, expand=0) if everything else first
    for name in dict.fromkeys(also):
        if name == "regions":
            ways.append(replace(filtered, rows=later("regions"), first_stage="regions"))
        elif name == "dba":
            # Where the whole photo counts beside the box, it does so in every row.
            way, names = (first, _three("DBA")) if fusion else (filtered, later("DBA"))
            start = None if first_stage == "regions" else names[0]
            ways.append(replace(way, rows=(start, *names[1:]), augment=NEIGHBOURS))
        elif name == "diffusion":
            ways.append(replace(filtered, rows=later("diffusion"), first_stage="diffusion"))
        elif name == "fused":
            rows = (None, "+ AML, fused", "+ AML + QE, fused")
            ways.append(replace(first, rows=rows, fusion=FUSED))
        else:
            ways.append(replace(first, rows=(None, None, "+ AML + alpha-QE"), expand_alpha=ALPHA))
    return ways


def _three(name: str) -> tuple[str, str, str]:
    return name, f"{name} + AML", f"{name} + AML + QE"
