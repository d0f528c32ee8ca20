"""Re-ranking by every pool: a photo scores what its box does, described by the definition."""

import numpy as np
import oracles
import pytest

from rmacjax.descriptors import Settings
from rmacjax.retrieval import Query, retrieve
from rmacjax.whitening import fit_pca_whitening

SIZES = [(6, 8), (8, 6), (5, 9), (1, 1), (3, 12)]
CHANNELS = 10


class Arrays:
    """A gallery in memory."""

    def __init__(self, descriptors, levels):
        self.descriptors, self.levels = descriptors, levels
        self.map_sizes = np.asarray([level.shape[:2] for level in levels], np.int32)

    def read_levels(self, indices):
        return [self.levels[i] for i in indices]

    def region_scores(self, regions):
        raise ValueError("no region vectors")

    def graph(self):
        raise ValueError("no neighbours")


@pytest.mark.parametrize("pool", ["gem", "crow", "spoc_centre", "rgem", "rmac"])
def test_boxes_are_described_as_the_collection_pools(rng, pool):
    levels = [rng.integers(0, 9, (*size, CHANNELS)).astype(np.uint8) for size in SIZES]
    whitening = fit_pca_whitening(rng.random((60, CHANNELS)), 6)
    slow = {
        "gem": lambda a: oracles.gem(a, 2.2),
        "crow": oracles.crow,
        "spoc_centre": oracles.spoc_centre,
        "rgem": lambda a: oracles.rgem(a, 2.2, 2, whitening),
        "rmac": lambda a: oracles.rmac(a, 2, whitening),
    }[pool]

    def describe(a):
        vector = slow(a)
        return vector if len(vector) == 6 else oracles.aggregate_regions([vector], whitening)

    descriptors = np.stack([describe(level) for level in levels]).astype(np.float32)
    seen = levels[0][1:5, 2:7]
    query = Query(
        descriptor=describe(seen).astype(np.float32),
        regions=describe(seen).astype(np.float32)[None],
        mac=oracles.unit(seen.max((0, 1))).astype(np.float32),
        ratio=0.8,
        box_px=(0, 0, 64, 80),
        height_px=64,
        width_px=80,
        gem_p=2.2,
    )
    found = retrieve(
        query,
        Arrays(descriptors, levels),
        whitening=whitening,
        settings=Settings(pool=pool, levels=2),
        expand=0,
    )
    assert sorted(found.ranking.indices.tolist()) == list(range(len(SIZES)))
    for index, score in zip(found.ranking.indices.tolist(), found.ranking.scores, strict=True):
        top, left, bottom, right = found.boxes[index][0]
        expected = describe(levels[index][top:bottom, left:right]) @ query.descriptor
        assert score == pytest.approx(expected, abs=1e-5)
