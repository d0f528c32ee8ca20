"""What a score is called, and where the line between found and not found is drawn."""

import pytest

from rmacjax.backbones import TORCHVISION_CONVENTION, Network
from rmacjax.descriptors import Params
from rmacjax.evaluation import learn_thresholds
from rmacjax.results import Lines, score_kind


def test_scores_of_one_kind_have_one_name():
    assert score_kind() == "expand" and score_kind(rerank="all") == "expand"
    assert score_kind(expand=0) == "rerank" and score_kind(rerank=0) == "filter"
    assert score_kind(rerank=0, fusion=0.5, expand_alpha=3.0) == "filter"
    assert score_kind(first_stage="regions") == score_kind(augment=5) == "expand"
    named = {
        score_kind(rerank=0, first_stage="regions"): "filter first_stage=regions",
        score_kind(rerank=0, augment=5): "filter augment=5",
        score_kind(expand=3, expand_alpha=3): "expand expand=3 expand_alpha=3",
        score_kind(fusion=0.5, augment=5): "expand fusion=0.5 augment=5",
        score_kind(expand=0, fusion=0.25): "rerank fusion=0.25",
        score_kind(expand=0, alpha=2.0): "rerank alpha=2",
        score_kind(alpha=10.0, fusion=0.5): "expand alpha=10 fusion=0.5",
        score_kind(rerank=0, alpha=2.0): "filter",
    }
    assert all(found == wanted for found, wanted in named.items())


def test_lines_are_those_that_were_learned_for_their_kind():
    learned = learn_thresholds({"filter": [0.25, 0.5], score_kind(expand=0): [0.125]})
    network = Network("alexnet", False, TORCHVISION_CONVENTION, thresholds=learned)
    lines = Lines.of(Params(network, {}), "rerank", "filter", None)
    assert [lines.found(s, reranked=True) for s in (0.125, 0.126)] == [False, True]
    assert [lines.found(s, reranked=False) for s in (0.5, 0.501)] == [False, True]
    none = Lines.of(Params(network, {}), "expand", "filter first_stage=regions", 0.5)
    assert none.found(1.0, reranked=True) is none.found(1.0, reranked=False) is None
    assert lines.wanted(-1.0, None) and none.wanted(0.5, False) and not none.wanted(0.4, True)
    sure = Lines.of(Params(network, {}), "rerank", "filter", "auto")
    assert sure.wanted(-1.0, True) and not sure.wanted(9.0, False) and not sure.wanted(9.0, None)
    with pytest.raises(ValueError, match='of the kind "expand" \\(only for "filter", "rerank"\\)'):
        Lines.of(Params(network, {}), "expand", "filter", "auto")
    with pytest.raises(ValueError, match="queries whose object is in no photo"):
        Lines.of(Params(Network("alexnet", False, TORCHVISION_CONVENTION), {}), "x", "y", "auto")
