"""Training with real weights on real photos: what is learned holds for things never trained on."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from rmacjax.datasets import read_museum
from rmacjax.descriptors import Settings
from rmacjax.finetune.loop import fit
from rmacjax.finetune.optimizer import Rates
from rmacjax.finetune.runs import Run
from rmacjax.finetune.sources import FolderOfFolders, hold_out
from rmacjax.finetune.state import Forward
from rmacjax.finetune.step import Objective, Plan
from rmacjax.finetune.validation import label_validator
from rmacjax.weights import convert


@pytest.fixture(scope="module")
def paintings(shared, tmp_path_factory) -> Path:
    """A folder for each painting that visitors photographed: the gallery's photo and theirs."""
    folder = tmp_path_factory.mktemp("paintings")
    truth = read_museum(shared / "data" / "museum")
    for number, query in enumerate(truth.queries):
        for positive in query.positives.tolist():
            painting = Path(truth.paths[positive])
            place = folder / painting.stem
            place.mkdir(exist_ok=True)
            if not (place / painting.name).exists():
                (place / painting.name).symlink_to(painting)
            with Image.open(query.path) as photo:
                photo.thumbnail((160, 160))
                photo.convert("RGB").save(place / f"visitor{number}.png")
    return folder


def test_squeezenet_finds_paintings_better_that_it_was_not_trained_on(shared, paintings, tmp_path):
    """InfoNCE on half of the paintings at 80 pixels, measured on the other half."""
    params = convert(shared / "weights" / "squeezenet1_1_torchvision_fp16.npz")
    params = params._replace(network=replace(params.network, gem_p=10.0))
    trained, held_out = hold_out(FolderOfFolders(paintings, long_side=80), 0.5, seed=0)
    settings = Settings(long_side=80, whiten=False)
    plan = Plan(
        Forward(params.network, "rmac", whitening="none"),
        Objective("info-nce"),
        Rates(rate=1e-4, steps=24, warmup=6),
    )
    run = Run(settings=settings, objects=8, workers=1, validate_every=24)
    validate = label_validator(held_out, settings=settings, watch="mAP")
    fit(params, trained, tmp_path, plan=plan, run=run, validate=validate)
    with open(tmp_path / "validation.csv", encoding="utf-8") as file:
        before, after = list(csv.DictReader(file))
    assert float(before["mAP"]) > 0.6  # ImageNet weights are a good start
    assert float(after["mAP"]) > float(before["mAP"]) + 0.05
    assert float(after["recall@1"]) > float(before["recall@1"]) + 0.05
