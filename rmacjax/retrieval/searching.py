"""The stages of one search, from an outlined object to ranked photos with boxes.

References: Tolias et al., ICLR 2016, sections 5 and 6.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from rmacjax.descriptors import REGIONAL, Params, Settings
from rmacjax.diffusion import diffuse
from rmacjax.expansion import alpha_expansion, average_expansion
from rmacjax.extraction import Failed, Image, Source, extract
from rmacjax.localization import Localization
from rmacjax.preprocessing import load_image
from rmacjax.regions import boxes_to_px, check_box_px
from rmacjax.reranking import box_regions, describe_boxes, localize_batch
from rmacjax.retrieval.batches import (
    AT_ONCE,
    Part,
    map_parts,
    mapped,
    padded_batch,
    read_ahead,
)
from rmacjax.retrieval.gallery import Gallery, Levels
from rmacjax.search import all_scores, top_k
from rmacjax.whitening import Whitening

Depth = int | Literal["all"]
"""How many of the best photos are re-ranked; "all" localises the query in every one."""

FirstStage = Literal["descriptor", "regions", "diffusion"]
"""What the filter compares: two descriptors, or the query's regions with those of an image; or how
much of the descriptors' similarity reaches an image from neighbour to neighbour."""


class Query(NamedTuple):
    """An outlined object, described.

    Attributes:
        descriptor: (d,) float32, unit, as the collection's are.
        regions: (r, d) float32: the vectors of its regions, of which the descriptor is the sum.
        mac: (c,) float32, unit: the plain MAC, of the quantised map, that localization compares
            with.
        ratio: height / width of the outlined box in pixels.
        box_px: the box in the query image; the whole image where none was given.
        height_px: height of the query image.
        width_px: width of the query image.
        gem_p: exponent of the network's GeM, with which boxes are described too.
    """

    descriptor: Float[np.ndarray, " d"]
    regions: Float[np.ndarray, "r d"]
    mac: Float[np.ndarray, " c"]
    ratio: float
    box_px: tuple[int, int, int, int]
    height_px: int
    width_px: int
    gem_p: float = 3.0


class Stage(NamedTuple):
    """A ranking and its scores, best first.

    Attributes:
        indices: (k,) positions in the gallery.
        scores: (k,) float32.
    """

    indices: Int[np.ndarray, " k"]
    scores: Float[np.ndarray, " k"]


class Retrieved(NamedTuple):
    """The outcome of one search, stage by stage.

    Attributes:
        ranking: the final order, of all images that the filter kept.
        filtered: the order by the first stage alone.
        reranked: the order by the boxes' descriptors, or None where nothing was re-ranked.
        boxes: gallery position -> (k, 4) boxes in cells, best first.
        box_scores: gallery position -> (k,) cosines of localization.
        seconds: what each stage took.
    """

    ranking: Stage
    filtered: Stage
    reranked: Stage | None
    boxes: dict[int, Int[np.ndarray, "k 4"]]
    box_scores: dict[int, Float[np.ndarray, " k"]]
    seconds: dict[str, float]


@cache
def localizer() -> Callable[..., Localization]:
    """`rmacjax.reranking.localize_batch`, compiled for vectors as wide as the processor has them.

    By itself XLA uses half of 512 bits; all of them make localizing a tenth faster, and processors
    without them take what they have. An XLA that does not know the option goes without.
    """
    wide: dict[str, str | bool] | None = {"xla_cpu_prefer_vector_width": "512"}
    try:
        jax.jit(jnp.negative, compiler_options=wide).lower(jnp.float32(0)).compile()
    except jax.errors.JaxRuntimeError:
        wide = None
    static = ("alpha", "instances")
    return jax.jit(localize_batch, static_argnames=static, compiler_options=wide)


_describe_boxes = jax.jit(describe_boxes, static_argnames=("pool", "gem_p"))


def describe_query(
    params: Params,
    image: Source,
    box_px: tuple[int, int, int, int] | None = None,
    *,
    settings: Settings,
) -> Query:
    """Describe the outlined part of an image: the crop goes through the network by itself.

    Args:
        params: the collection's.
        image: a file path, or an (H, W, 3) RGB array.
        box_px: (top, left, bottom, right) in pixels of the image, or None for all of it.
        settings: the collection's.

    Raises:
        ValueError: where the box is upside down, empty or reaches outside, or the crop is too small
            for the network.
        OSError: where the file cannot be read.
    """
    pixels, height, width, box = cut_query(image, box_px, settings.long_side)
    (item,) = extract(params, [pixels], settings=settings, keep_regions=True)
    if isinstance(item, Failed):
        sides = ", ".join(map(str, (box[1], box[0], box[3], box[2])))
        raise ValueError(
            f"the query's box (left, top, right, bottom) = ({sides}) cannot be described: "
            f"{item.error}"
        )
    ratio = (box[2] - box[0]) / (box[3] - box[1])
    regions = cast(np.ndarray, item.regions)  # they were asked for
    gem_p = params.network.gem_p
    return Query(item.descriptor, regions, item.query, ratio, box, height, width, gem_p)


def cut_query(
    image: Source, box_px: tuple[int, int, int, int] | None, long_side: int
) -> tuple[Image, int, int, tuple[int, int, int, int]]:
    """The outlined pixels, the image's height and width, and the box as it was taken."""
    if isinstance(image, str) or hasattr(image, "__fspath__"):
        loaded = load_image(image, long_side, box_px=box_px)
        height, width = loaded.height_px, loaded.width_px
        pixels = loaded.pixels
        box = check_box_px(box_px or (0, 0, height, width), (height, width))
    else:
        whole = np.asarray(image)
        height, width = whole.shape[:2]
        box = check_box_px(box_px or (0, 0, height, width), (height, width))
        pixels = whole[box[0] : box[2], box[1] : box[3]]
    return pixels, height, width, box


def retrieve(
    query: Query,
    gallery: Gallery,
    *,
    whitening: Whitening | None = None,
    settings: Settings,
    keep: int = 1000,
    rerank: Depth = 1000,
    expand: int = 5,
    instances: int = 1,
    alpha: float | None = None,
    fusion: float = 0.0,
    first_stage: FirstStage = "descriptor",
    expand_alpha: float | None = None,
) -> Retrieved:
    """Rank a gallery for one query.

    Args:
        query: from `describe_query`.
        gallery: what to search.
        whitening: the one the gallery's descriptors were made with.
        settings: the gallery's.
        keep: how many images the filter keeps at least.
        rerank: how many of the best are localised and re-ranked; 0 for none, "all" for the whole
            gallery, whatever the filter thinks of it.
        expand: how many of the best boxes join the query for the last scoring; 0 for none. Where
            nothing is re-ranked there are no boxes, and nothing is expanded.
        instances: boxes per image.
        alpha: exponent of the paper's generalized mean for localization; None for exact maxima.
        fusion: share (0..1) of the whole image's descriptor in what is re-ranked; 0 scores the box
            alone, as published, 1 the whole image alone, which without expansion is the order of
            a filter by descriptors. Expansion takes the boxes' descriptors in any case.
        first_stage: what the filter ranks by: "descriptor", one vector per image as published, or
            "regions", each of the query's regions with the image's one most like it, where an
            object that fills a small part of a photo is not drowned by the rest; or "diffusion",
            by `rmacjax.diffusion.diffuse`, where views that are not alike are reached through
            those between them.
        expand_alpha: None counts all boxes that join the query alike, as published; a number weighs
            each by its cosine with the query to this power.

    Raises:
        ValueError: where the first stage is "regions" and the gallery has no region vectors.
    """
    seconds: dict[str, float] = {}
    with _timed(seconds, "filter"):
        size = len(gallery.map_sizes)
        depth = size if rerank == "all" else rerank
        count = max(1, min(size, max(keep, depth)))
        filtered = _filtered(query, gallery, count, first_stage)
    chosen = filtered.indices[:depth]
    if not len(chosen):
        return Retrieved(filtered, filtered, None, {}, {}, seconds)

    with _timed(seconds, "localize"):
        vectors, boxes, box_scores = _find_boxes(
            query, gallery, chosen, whitening, settings, instances=instances, alpha=alpha
        )
    with _timed(seconds, "rerank"):
        fused = vectors
        if fusion > 0:
            whole = np.asarray(gallery.descriptors[chosen], np.float32)
            fused = (1 - fusion) * vectors + fusion * whole
        reranked = _reordered(filtered, fused, query.descriptor)
    ranking = reranked
    if expand > 0:
        with _timed(seconds, "expand"):
            order = np.argsort(-_products(fused, query.descriptor), kind="stable")[:expand]
            expanded = _expanded(query.descriptor, vectors[order], expand_alpha)
            ranking = _reordered(filtered, fused, expanded)
    return Retrieved(ranking, filtered, reranked, boxes, box_scores, seconds)


def _expanded(
    query: Float[np.ndarray, " d"], vectors: Float[np.ndarray, "k d"], alpha: float | None
) -> Float[np.ndarray, " d"]:
    if alpha is None:
        return np.asarray(average_expansion(query, vectors))
    return np.asarray(alpha_expansion(query, vectors, vectors @ query, alpha=alpha))


def _filtered(query: Query, gallery: Gallery, count: int, first_stage: FirstStage) -> Stage:
    """The best images by the first stage. Of equal scores the lower position comes first."""
    if first_stage == "regions":
        every = gallery.region_scores(query.regions)
        best = np.argsort(-every, kind="stable")[:count]
        return Stage(best, every[best])
    size = len(gallery.map_sizes)
    if first_stage == "diffusion":
        near = np.asarray(all_scores(query.descriptor, gallery.descriptors, rows=size))
        reached = diffuse(gallery.graph(), near)
        # What nothing reaches is ranked by its own similarity.
        best = np.lexsort((-near, -reached))[:count]
        return Stage(best, reached[best].astype(np.float32))
    scores, indices = top_k(query.descriptor, gallery.descriptors, count, rows=size)
    return Stage(np.asarray(indices), np.asarray(scores))


def _find_boxes(
    query: Query,
    gallery: Gallery,
    chosen: Int[np.ndarray, " k"],
    whitening: Whitening | None,
    settings: Settings,
    *,
    instances: int,
    alpha: float | None,
) -> tuple[Float[np.ndarray, "k d"], dict[int, np.ndarray], dict[int, np.ndarray]]:
    """Localise the query in the chosen maps: best boxes' descriptors, all boxes, cosines."""
    vectors = np.zeros((len(chosen), len(query.descriptor)), np.float32)
    boxes: dict[int, np.ndarray] = {}
    box_scores: dict[int, np.ndarray] = {}
    ratio = np.float32(query.ratio)

    def find(part: Part, levels: Sequence[Levels]) -> tuple[np.ndarray, ...]:
        maps, sizes = padded_batch(part, levels)
        maps = jax.device_put(maps)
        found = localizer()(maps, sizes, query.mac, ratio, alpha=alpha, instances=instances)
        score, box = (np.asarray(field) for field in found)
        if settings.pool in REGIONAL:
            regions = box_regions(
                box[:, 0], levels=settings.levels, with_global=settings.with_global
            )
        else:
            regions = box[:, :1]
        described = _describe_boxes(maps, regions, whitening, pool=settings.pool, gem_p=query.gem_p)
        return score, box, np.asarray(described)

    parts = map_parts(gallery, chosen)
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="localize") as pool:
        outcomes = mapped(pool, find, read_ahead(gallery, chosen, parts))
        for part, (score, box, described) in zip(parts, outcomes, strict=True):
            vectors[part.positions] = described[: len(part.positions)]
            for row, index in enumerate(chosen[part.positions].tolist()):
                boxes[index], box_scores[index] = box[row], score[row]
    return vectors, boxes, box_scores


def boxes_in_pixels(
    retrieved: Retrieved, index: int, map_size: Sequence[int], image_size_px: Sequence[int]
) -> list[tuple[int, int, int, int]]:
    """An image's boxes in pixels of its original file, best first."""
    cells = retrieved.boxes.get(index)
    if cells is None:
        return []
    real = cells[cells[:, 2] > cells[:, 0]]
    pixels = np.rint(boxes_to_px(real, tuple(map_size), tuple(image_size_px))).astype(int)
    return [tuple(box) for box in pixels.tolist()]


def _reordered(
    filtered: Stage, vectors: Float[np.ndarray, "k d"], query: Float[np.ndarray, " d"]
) -> Stage:
    """The re-ranked images by their boxes' scores; what was not re-ranked follows as it was."""
    scores = _products(vectors, query)
    order = np.argsort(-scores, kind="stable")
    rest = slice(len(vectors), None)
    return Stage(
        np.concatenate([filtered.indices[order], filtered.indices[rest]]),
        np.concatenate([scores[order], filtered.scores[rest]]),
    )


def _products(
    vectors: Float[np.ndarray, "k d"], query: Float[np.ndarray, " d"]
) -> Float[np.ndarray, " k"]:
    """Each vector's product with the query, which depends on no place among the others.

    BLAS takes several rows at once and the last ones by themselves, and rounds them otherwise.
    """
    return np.einsum("kd,d->k", np.asarray(vectors, np.float32), np.asarray(query, np.float32))


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start
