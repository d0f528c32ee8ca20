"""Validation: beside plain loops, `measure` on a collection of its own, and stopping by hand."""

import os
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import rmacjax
from rmacjax.backbones import TORCHVISION_CONVENTION, Network, initialize
from rmacjax.datasets import GroundTruth, Query
from rmacjax.descriptors import Params, Settings
from rmacjax.finetune.validation import EarlyStop, label_validator, validator
from rmacjax.measurement import Way, measure
from rmacjax.preprocessing import encode_jpeg
from rmacjax.scenes import render_collection

NONE = np.zeros(0, np.int64)
SETTINGS = Settings(long_side=96)


@pytest.fixture(scope="module")
def params() -> Params:
    # An untrained network is quiet: so loud that its quantised maps tell photos apart.
    network = Network(
        "alexnet", last_pool=False, convention=TORCHVISION_CONVENTION, activation_scale=8.7
    )
    return Params(network, initialize("alexnet", 0), None)


class Photos:
    """Generated photos of things, two of which cannot be read or described."""

    def __init__(self) -> None:
        scenes = render_collection(7, objects=5, views=3, distractors=3, size=(72, 96))
        self.images = scenes.images
        self.labels = np.asarray(scenes.labels, np.int64)
        self.boxes = scenes.boxes
        self.broken = int(np.flatnonzero(self.labels == self.labels.max())[0])
        self.tiny = int(np.flatnonzero(self.labels == self.labels.max())[1])

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> np.ndarray:
        if index == self.broken:
            raise OSError(f"photo {index} is cut short: copy it again")
        return self.images[index][:3, :3] if index == self.tiny else self.images[index]

    def name_of(self, index: int) -> str:
        return f"photo {index}"


@pytest.fixture(scope="module")
def photos() -> Photos:
    return Photos()


@pytest.fixture(scope="module")
def truth(photos, tmp_path_factory) -> GroundTruth:
    folder = tmp_path_factory.mktemp("truth")
    paths = [str(folder / f"{number}.jpg") for number in range(len(photos))]
    for path, image in zip(paths, photos.images, strict=True):
        Path(path).write_bytes(encode_jpeg(image))
    queries = []
    for label in range(4):
        first, *others = np.flatnonzero(photos.labels == label).tolist()
        boxes = {number: photos.boxes[number] for number in others}
        queries.append(
            Query(
                paths[first],
                photos.boxes[first],
                np.asarray(others),
                np.asarray([first]),
                boxes,
                f"thing {label}",
                np.asarray(others[:1]),
            )
        )
    return GroundTruth("scenes", paths, queries)


def left_in_temporary_folder() -> set[str]:
    return {name for name in os.listdir(tempfile.gettempdir()) if name.startswith("rmacjax-val")}


def test_a_ground_truth_is_searched_as_a_collection_is(truth, params, tmp_path):
    before = left_in_temporary_folder()
    collection = rmacjax.Collection.create(tmp_path / "own", params, settings=SETTINGS)
    collection.add(truth.paths)
    way = Way(expand=2)
    expected = {}
    for row in measure(collection, truth, [way]).rows:
        expected |= {f"{row.name} {name}": score.mean for name, score in row.scores.items()}
        if row.boxes:
            expected[f"{row.name} overlap"] = row.overlap
    done = validator(truth, settings=SETTINGS, way=way, watch="+ AML overlap")(params)
    assert done.values == expected and len(expected) == 8
    assert done.score == expected["+ AML overlap"] and done.skipped == () and done.seconds > 0
    alone = validator(truth, settings=SETTINGS)(params)
    assert list(alone.values) == ["filter mAP", "filter first place"]
    assert alone.score == alone.values["filter mAP"] == expected["filter mAP"]
    # By hand: descriptors, dot products, and average precisions by the oracle.
    precisions = []
    for query in truth.queries:
        found = collection.search(query.path, query.box_px, top=len(truth.paths), rerank=0)
        order = [truth.paths.index(hit.path) for hit in found.hits]
        precisions.append(oracles.average_precision(order, set(query.positives), set(query.junk)))
    assert alone.score == pytest.approx(np.mean(precisions), abs=1e-12)
    assert left_in_temporary_folder() == before


def test_the_revisited_protocol_is_watched_by_its_medium_score(truth, params):
    done = validator(truth._replace(protocol="revisited"), settings=SETTINGS)(params)
    assert done.score == done.values["filter mAP M"]
    assert {name.removeprefix("filter ")[:4] for name in done.values} == {"mAP ", "mP@1", "mP@5"}


def test_params_on_all_devices_are_validated_as_on_one(truth, photos, params):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(params, jax.NamedSharding(mesh, jax.P()))
    for validate in (
        validator(truth, settings=SETTINGS),
        label_validator(photos, settings=SETTINGS),
    ):
        assert validate(spread).values == validate(params).values
    # What was lent is as it was.
    assert len(jax.tree.leaves(spread)[0].sharding.device_set) == 2


def test_labels_are_searched_for_as_a_plain_loop_does(photos, params):
    done = label_validator(photos, settings=SETTINGS)(params)
    usable = [
        index
        for index in range(len(photos))
        if photos.labels[index] >= 0 and index not in (photos.broken, photos.tiny)
    ]
    vectors = {
        index: np.asarray(
            rmacjax.describe(params, [photos.images[index]], settings=SETTINGS)[0], np.float64
        )
        for index in usable
    }
    firsts, precisions = [], []
    for query in usable:
        others = [index for index in usable if index != query]
        same = {index for index in others if photos.labels[index] == photos.labels[query]}
        if not same:
            continue
        order = sorted(others, key=lambda index: -float(vectors[query] @ vectors[index]))
        firsts.append(order[0] in same)
        precisions.append(oracles.average_precision(order, same, set()))
    assert 5 < len(firsts) < len(photos)
    assert done.values == pytest.approx(
        {"recall@1": np.mean(firsts), "mAP": np.mean(precisions)}, abs=1e-9
    )
    assert done.score == done.values["recall@1"] and 0 < done.values["mAP"] < 1
    skipped = dict(done.skipped)
    assert (
        skipped[photos.name_of(photos.broken)]
        == f"photo {photos.broken} is cut short: copy it again"
    )
    tiny = photos.name_of(photos.tiny)
    assert skipped[tiny].startswith(f"{tiny} has 3 x 3 pixels, and the network needs ")
    assert len(skipped) == 2


def test_only_what_is_held_out_is_searched_and_a_better_network_scores_more(photos, params):
    class Painted(Photos):
        """One flat colour for each label: what any network tells apart."""

        def read(self, index: int) -> np.ndarray:
            color = np.random.default_rng(int(self.labels[index])).integers(0, 256, (6, 8, 3))
            return np.kron(color, np.ones((12, 12, 1))).astype(np.uint8)

    painted = Painted()
    held_out = [i for i in range(len(painted)) if painted.labels[i] in (0, 1, 2, -1)]
    done = label_validator(painted, settings=SETTINGS, indices=held_out, watch="mAP")(params)
    assert done.values == {"recall@1": 1.0, "mAP": 1.0} and done.score == 1.0
    blind = params._replace(weights=jax.tree.map(jnp.zeros_like, params.weights))
    worse = label_validator(painted, settings=SETTINGS, indices=held_out, most_queries=3)(blind)
    assert worse.values["mAP"] < 1
    lost = params._replace(weights=jax.tree.map(lambda x: x * jnp.nan, params.weights))
    assert label_validator(painted, settings=SETTINGS)(lost).values["mAP"] < 1


def test_photos_that_cannot_be_read_are_named(truth, params, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a photo")
    more = truth._replace(paths=[*truth.paths, str(tmp_path / "broken.jpg")])
    done = validator(more, settings=SETTINGS)(params)
    ((path, reason),) = done.skipped
    assert path.endswith("broken.jpg") and reason
    assert done.values == validator(truth, settings=SETTINGS)(params).values
    query = truth.queries[0]._replace(positives=np.asarray([0]), junk=NONE, boxes={}, hard=NONE)
    nothing = GroundTruth("nothing", [str(tmp_path / "broken.jpg")], [query])
    with pytest.raises(OSError, match="none of the photos of nothing could be used"):
        validator(nothing, settings=SETTINGS)(params)


def test_what_cannot_be_validated_is_refused(truth, photos, params):
    empty = truth._replace(queries=[q._replace(positives=NONE, boxes={}) for q in truth.queries])
    with pytest.raises(ValueError, match="scenes has no query with an answer: validate on another"):
        validator(empty)
    with pytest.raises(
        ValueError, match=r"no value 'mAP' to watch; there is filter mAP, filter fi"
    ):
        validator(truth, watch="mAP")
    with pytest.raises(ValueError, match=r"no value 'recall' to watch; there is recall@1, mAP"):
        label_validator(photos, watch="recall")
    with pytest.raises(ValueError, match="most_queries must be at least 1, not 0"):
        label_validator(photos, most_queries=0)
    one_each = [int(np.flatnonzero(photos.labels == label)[0]) for label in range(3)]
    with pytest.raises(ValueError, match=r"no two of the 3 photos held out .* have the same label"):
        label_validator(photos, indices=one_each)
    pair = np.flatnonzero(photos.labels == photos.labels.max())[:2]
    with pytest.raises(OSError, match="of the 2 photos held out for validation too few could be"):
        label_validator(photos, indices=pair)(params)


def test_a_training_stops_after_so_many_validations_without_a_new_best():
    stop = EarlyStop(3)
    scores = [0.2, 0.5, 0.5, float("nan"), 0.6, 0.1, 0.2, 0.6, 0.9]
    stopped = []
    for score in scores:
        stop = stop.update(score)
        stopped.append(stop.stop)
    assert stopped == [False] * 7 + [True, False]
    assert stop == EarlyStop(3, 0.9, 0)
    assert EarlyStop(*stop) == stop
    never = EarlyStop(0)
    for _ in range(50):
        never = never.update(-1.0)
    assert not never.stop and never.best == -1.0
    assert not EarlyStop(1).update(float("nan")).update(0.1).stop
