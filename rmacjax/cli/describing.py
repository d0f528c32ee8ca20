"""How photos are described: the options that several commands share, and what they add up to."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal, cast

from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec

from rmacjax.cli.terminal import say

if TYPE_CHECKING:
    from rmacjax.descriptors import Params, Pool, Settings

PoolName = Literal["rmac", "mac", "spoc", "spoc_centre", "gem", "crow", "rgem"]
"""The pools of `rmacjax.descriptors`, which is not imported for a page of help."""

PoolChoice = Annotated[
    PoolName | None,
    arg(metavar="rmac|mac|spoc|spoc_centre|gem|crow|rgem", help_behavior_hint="(default: rmac)"),
]
LevelsChoice = Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 3)")]


def _scales(words: list[str]) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in words)
    except ValueError as error:
        raise ValueError(f"scales are numbers above 0 and at most 1, not {words}") from error


ScalesChoice = Annotated[
    tuple[float, ...] | None,
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="S ...",
        instance_from_str=_scales,
        is_instance=lambda value: value is None or isinstance(value, tuple),
        str_from_instance=lambda value: [] if value is None else [str(scale) for scale in value],
    ),
    arg(name="scales", help_behavior_hint="(default: 1)"),
]


def stored_settings(weights: str) -> Mapping[str, object]:
    """The settings that a weights file says it was made for; empty where it says nothing."""
    from rmacjax.weights import describe_file

    stored = describe_file(weights).get("settings")
    return stored if isinstance(stored, Mapping) else {}


def settings_facts(settings: "Settings") -> dict[str, object]:
    """The settings that a whitening belongs to, as a weights file says them."""
    from rmacjax.descriptors import REGIONAL

    facts: dict[str, object] = {"pool": settings.pool, "long_side": settings.long_side}
    if settings.pool in REGIONAL:
        facts |= {"levels": settings.levels, "with_global": settings.with_global}
    if settings.scales != (1.0,):
        facts["scales"] = list(settings.scales)
    return facts


def chosen_settings(
    weights: str,
    *,
    long_side: int | None = None,
    pool: "PoolName | None" = None,
    levels: int | None = None,
    scales: tuple[float, ...] | None = None,
    whiten: bool = True,
) -> "Settings":
    """The settings that options ask for; the weights' own where no option names one.

    Weights bring along their pool, and for that pool the levels, the scales and whether the whole
    photo is a region. What is taken is said; so is a long side that they were not made for.

    Args:
        weights: as `rmacjax.load` takes them.
        long_side: None for the default, as all that follow.
        pool: how a vector is made of a map.
        levels: scales of the region grid.
        scales: at which multiples of its size a photo is described.
        whiten: whether the weights' whitening is used.

    Raises:
        ValueError: a value out of range, or levels for a pool without regions.
    """
    from rmacjax.descriptors import REGIONAL, Settings

    defaults = Settings()
    stored = stored_settings(weights)
    chosen = pool or cast("Pool", str(stored.get("pool", defaults.pool)))
    own = stored if stored.get("pool") == chosen else {}
    grid = _whole(own.get("levels"), defaults.levels) if levels is None else levels
    with_global = bool(own.get("with_global", defaults.with_global)) and chosen in REGIONAL
    multiples = _multiples(own.get("scales"), defaults.scales) if scales is None else scales
    if levels is not None and chosen not in REGIONAL:
        raise ValueError(
            f"--levels counts the scales of a grid of regions, which {chosen} has not: leave it "
            f"out, or take --pool {' or '.join(REGIONAL)}"
        )
    settings = Settings(
        long_side=defaults.long_side if long_side is None else long_side,
        pool=chosen,
        levels=grid,
        with_global=with_global,
        scales=multiples,
        whiten=whiten,
    )
    _tell_taken(weights, settings, pool is None, levels is None, scales is None)
    side = _whole(stored.get("long_side"), settings.long_side)
    if side != settings.long_side:
        say(
            f"The weights {weights!r} were made for photos of {side} pixels along their long side, "
            f"not {settings.long_side} (see --long-side)"
        )
    return settings


def _tell_taken(
    weights: str, settings: "Settings", own_pool: bool, own_levels: bool, own_scales: bool
) -> None:
    """Say which settings other than the usual ones no option asked for."""
    usual = type(settings)()
    taken, options = [], []
    if own_levels and settings.levels != usual.levels:
        taken.append(f"{settings.levels} levels")
        options.append("--levels")
    if settings.with_global:
        taken.append("the whole photo as one more region")
    if own_scales and settings.scales != usual.scales:
        taken.append(f"scales {' '.join(f'{scale:.4g}' for scale in settings.scales)}")
        options.append("--scales")
    if own_pool and (settings.pool != usual.pool or taken):
        taken.insert(0, settings.pool)
        options.insert(0, "--pool")
    if taken:
        see = f" (see {', '.join(options)})" if options else ""
        words = taken[0] if len(taken) == 1 else f"{', '.join(taken[:-1])} and {taken[-1]}"
        say(
            f"Pooling by {words}, as the weights {weights!r} were made for{see}"
            if own_pool
            else f"With {words}, as the weights {weights!r} were made for{see}"
        )


def warn_of_other_pool(weights: str, params: "Params", settings: "Settings") -> None:
    """Say so where the whitening was learned on vectors that were pooled another way, or is none.

    Args:
        weights: as `rmacjax.load` takes them.
        params: what was loaded.
        settings: how photos are to be described.
    """
    if params.whitening is None:
        if not settings.whiten:
            say(f"--no-whiten changes nothing: {weights!r} has no whitening to leave out")
        return
    if not settings.whiten:
        return
    # Whitenings that don't say were learned on R-MAC's regions.
    learned = stored_settings(weights).get("pool", "rmac")
    if learned != settings.pool:
        say(
            f"The whitening of {weights!r} was learned on vectors of {learned}, not of "
            f"{settings.pool}: learn one (rmacjax whiten --pool {settings.pool}), or leave it out "
            "(--no-whiten)"
        )


def _whole(value: object, default: int) -> int:
    return value if isinstance(value, int) else default


def _multiples(value: object, default: tuple[float, ...]) -> tuple[float, ...]:
    if not isinstance(value, list) or not all(isinstance(scale, int | float) for scale in value):
        return default
    return tuple(map(float, value)) or default
