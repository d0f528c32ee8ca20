"""Retrieval: from an outlined object to ranked photos with boxes.

One path, read downwards: the query's descriptor ranks everything (*filter*), or its regions do,
part by part, or its similarities as they spread from neighbour to neighbour; the best thousand maps
are read, AML finds the object in each, and the descriptor of what was found scores it (*re-rank*);
the mean of the query and the best five boxes scores those thousand once more (*expand*).

Where the descriptors and maps lie is not decided here: anything with the few members of `Gallery`
can be searched, a collection on disk and arrays in memory alike.

References: Tolias et al., ICLR 2016, sections 5 and 6.
"""

from rmacjax.retrieval.batches import (
    AT_ONCE,
    MAP_SIDES,
    MAPS_PER_BATCH,
    OWN_SHAPE,
    READ_AHEAD,
    map_side,
)
from rmacjax.retrieval.gallery import Gallery, Levels
from rmacjax.retrieval.searching import (
    Depth,
    FirstStage,
    Query,
    Retrieved,
    Stage,
    boxes_in_pixels,
    cut_query,
    describe_query,
    localizer,
    retrieve,
)

__all__ = [
    "AT_ONCE",
    "MAPS_PER_BATCH",
    "MAP_SIDES",
    "OWN_SHAPE",
    "READ_AHEAD",
    "Depth",
    "FirstStage",
    "Gallery",
    "Levels",
    "Query",
    "Retrieved",
    "Stage",
    "boxes_in_pixels",
    "cut_query",
    "describe_query",
    "localizer",
    "map_side",
    "retrieve",
]
