"""What was published beside what was measured: `rmacjax evaluate --recipe`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rmacjax.datasets import GroundTruth
    from rmacjax.descriptors import Params, Settings
    from rmacjax.measurement import Row
    from rmacjax.recipes import Recipe

FIXED = (
    "dataset",
    "whiten_on",
    "pool",
    "levels",
    "at_scales",
    "no_whiten",
    "rerank",
    "expand",
    "long_side",
    "last_pool",
    "no_last_pool",
    "queries",
    "fusion",
    "first_stage",
    "distractors",
    "reversed",
    "subset",
)
"""What a recipe decides and nobody else."""


def recipe_of(
    name: str | None, given: Mapping[str, object], defaults: Mapping[str, object]
) -> "Recipe | None":
    """The recipe of that name, after it was made sure that nothing contradicts it.

    Args:
        name: of a recipe; None for none.
        given: the command's options as they were given.
        defaults: the same without any.

    Raises:
        ValueError: there is no such recipe, or an option says otherwise than it decides.
    """
    if name is None:
        return None
    from rmacjax.recipes import RECIPES

    if name not in RECIPES:
        raise ValueError(f"there is no recipe {name!r}; there are {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    own = vars(recipe) | {
        "whiten_on": recipe.whiten,
        "at_scales": recipe.scales,
        "last_pool": recipe.last_pool is True,
        "no_last_pool": recipe.last_pool is False,
    }
    for option in FIXED:
        if given[option] not in (defaults[option], own.get(option, defaults[option])):
            words = "--" + option.removesuffix("_on").removeprefix("at_").replace("_", "-")
            what = "what is searched" if option == "dataset" else words
            raise ValueError(f"the recipe {name!r} decides {what}: leave it out, or the recipe")
    return recipe


def recipes_weights(weights: str | None, recipe: "Recipe", name: str) -> str:
    """The network that is taken: the one that was asked for, else the recipe's own.

    Raises:
        ValueError: neither is there.
    """
    if weights is not None:
        return weights
    if recipe.weights is None:
        raise ValueError(
            f"the recipe {name!r} needs its network: rmacjax weights convert the published file, "
            "and name it with --weights"
        )
    return recipe.weights


def departures(
    recipe: "Recipe",
    weights: str,
    params: "Params",
    settings: "Settings",
    truth: "GroundTruth",
    skipped: int,
) -> list[str]:
    """In what a run is not the one that a recipe's figures are expected of, in words.

    Args:
        recipe: what was asked for.
        weights: the network, as the command named it.
        params: what was loaded and learned.
        settings: how photos were described.
        truth: the photos and queries.
        skipped: how many photos and queries could not be used.
    """
    from rmacjax.datasets import KNOWN

    found = _of_network(recipe, weights, params)
    wanted = {
        "pool": recipe.pool,
        "levels": recipe.levels,
        "with_global": False,
        "scales": recipe.scales,
        "long_side": recipe.long_side,
    }
    if recipe.levels is None:
        del wanted["levels"]
    for name, value in wanted.items():
        if getattr(settings, name) != value:
            found.append(f"{name} {getattr(settings, name)} where {value} is due")
    if params.whitening is None or not settings.whiten:
        found.append("no whitening")
    counts = KNOWN[recipe.dataset].counts
    for have, want, what in (
        (len(truth.paths), counts.photos + counts.distractors, "photos"),
        (len(truth.queries), counts.queries, "queries"),
    ):
        if have != want:
            found.append(f"{have} {what} where {recipe.dataset} has {want}")
    if skipped:
        found.append(f"{skipped} photos that could not be used")
    return found


def _of_network(recipe: "Recipe", weights: str, params: "Params") -> list[str]:
    """What is another network than a recipe's, by the numbers or where they came from."""
    from rmacjax.weights import describe_file, provenance

    network = params.network
    if network.architecture != recipe.architecture:
        return [f"the network {network.architecture} where {recipe.architecture} is due"]
    if recipe.weights is not None:
        return [] if _same_numbers(recipe.weights, weights, params) else [f"weights {weights!r}"]
    if not provenance(weights)["source_sha256"].startswith(recipe.source_sha256):
        return [f"weights {weights!r}, which were not made of the published file"]
    whitening = describe_file(weights).get("whitening")
    origin = str(whitening["origin"]) if isinstance(whitening, dict) else "none"
    if not origin.startswith(recipe.whitening_origin):
        return [f"the whitening {origin!r} where {recipe.whitening_origin!r} is due"]
    return []


def _same_numbers(name: str, weights: str, params: "Params") -> bool:
    """Whether weights are those that go by a name; where these are not here, nobody knows."""
    import numpy as np

    from rmacjax.weights import load

    if weights == name:
        return True
    try:
        theirs = load(name)
    except OSError:
        return False
    return theirs.network.convention == params.network.convention and all(
        np.array_equal(theirs.weights[key], array) for key, array in params.weights.items()
    )


def compared(rows: Sequence["Row"], recipe: "Recipe", different: Sequence[str]) -> list[str]:
    """What was published beside what was measured, a sentence each.

    Args:
        rows: what was measured.
        recipe: with what was published.
        different: the run's `departures`; where there are any, figures are not compared.
    """
    if different:
        figures = ", ".join(
            f"{row}, {name} {score:.1f}"
            for row, scores in recipe.expected.items()
            for name, score in scores.items()
        )
        network = recipe.weights or recipe.architecture
        return [
            f"No verdict: what was published ({figures}; {recipe.source}) is for {network} on all "
            f"of {recipe.dataset} with the recipe's settings, and this run has "
            f"{'; '.join(different)}"
        ]
    measured = {row.name: row.scores for row in rows}
    sentences = []
    for number, (row, scores) in enumerate(recipe.expected.items()):
        allowed = recipe.tolerance * (2 if number else 1)
        for name, expected in scores.items():
            if row not in measured or name not in measured[row]:
                continue
            got = 100 * measured[row][name].mean
            verdict = "as published" if abs(got - expected) <= allowed else "NOT as published"
            sentences.append(
                f"{row}, {name}: {got:.1f}, published {expected:.1f} ({recipe.source}), "
                f"may be {allowed:g} off: {verdict}"
            )
    return sentences
