"""Queries as files put them, photos by name, and how names become numbers of a collection."""

from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import NamedTuple

from rmacjax.datasets.ground_truth import Box, Query, box_from_ltrb, look_up

__all__ = ["NamedQuery", "keep_only", "named_photos", "resolve"]


class NamedQuery(NamedTuple):
    """A query as the files put it: photos by name without suffix, the box with fractions.

    Attributes:
        name: landmark and number, such as ``all_souls_1``, or the photo's name.
        image: the photo that the box is in.
        box_ltrb: left, top, right, bottom, pixels; None: the whole photo.
        good: photos that show the object clearly; in the revisited protocol, the easy ones.
        ok: photos that show more than a quarter of it.
        junk: photos that show less.
        hard: in the revisited protocol, photos that show it but are hard to find.
    """

    name: str
    image: str
    box_ltrb: tuple[float, float, float, float] | None
    good: Sequence[str]
    ok: Sequence[str]
    junk: Sequence[str]
    hard: Sequence[str] = ()


def named_photos(queries: Sequence[NamedQuery]) -> set[str]:
    """Return the names of all photos that queries name."""
    return {
        name
        for query in queries
        for name in (query.image, *query.good, *query.ok, *query.junk, *query.hard)
    }


def keep_only(query: NamedQuery, present: Collection[str]) -> NamedQuery:
    """Return the query without those photos of its lists that are not present."""
    return query._replace(
        good=[name for name in query.good if name in present],
        ok=[name for name in query.ok if name in present],
        junk=[name for name in query.junk if name in present],
        hard=[name for name in query.hard if name in present],
    )


def resolve(
    queries: Sequence[NamedQuery],
    collection: Sequence[str],
    photos: Mapping[str, str],
    source: str,
    *,
    objects: Sequence[Hashable],
) -> list[Query]:
    """Put numbers for names, and add the boxes that queries for one object know of each other.

    Args:
        queries: what to put into numbers.
        collection: the names of the collection's photos, in order.
        photos: path by name, of the collection and of the queries.
        source: where the queries stand, for errors.
        objects: for each query, which object it looks for.

    Returns:
        The queries, in order.

    Raises:
        ValueError: a name that is not in the collection, or a box that is not on its photo.
    """
    index = {name: number for number, name in enumerate(collection)}
    own: list[Box | None] = []
    known: dict[Hashable, dict[int, Box]] = {}
    for query, thing in zip(queries, objects, strict=True):
        where = f"{source}, query {query.name}"
        box = None
        if query.box_ltrb is not None:
            box = box_from_ltrb(photos[query.image], query.box_ltrb, where)
            if query.image in index:
                known.setdefault(thing, {})[index[query.image]] = box
        own.append(box)
    resolved = []
    for query, box, thing in zip(queries, own, objects, strict=True):
        where = f"{source}, query {query.name}"
        hard = look_up(query.hard, index, where)
        positives = look_up([*query.good, *query.ok, *query.hard], index, where)
        outlines = dict(known.get(thing, {}))
        if box is not None and query.image in index:
            outlines[index[query.image]] = box  # its own, if another query has it too
        boxes = {int(i): outlines[int(i)] for i in positives if int(i) in outlines}
        junk = look_up(query.junk, index, where)
        path = photos[query.image]
        resolved.append(Query(path, box, positives, junk, boxes, query.name, hard))
    return resolved
