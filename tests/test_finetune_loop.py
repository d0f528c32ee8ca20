"""A whole training: the same however it was interrupted, and told when it cannot go on."""

import csv
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image
from safetensors import safe_open

from rmacjax import scenes
from rmacjax.backbones import TORCHVISION_CONVENTION, Network, initialize
from rmacjax.descriptors import Params, Settings
from rmacjax.extraction import describe
from rmacjax.finetune import loop
from rmacjax.finetune.checkpoints import Checkpoints
from rmacjax.finetune.loop import fit, foresee
from rmacjax.finetune.optimizer import Rates, optimizer
from rmacjax.finetune.runs import Diverged, Run, Stopped, identity
from rmacjax.finetune.sources import (
    FolderOfFolders,
    GeneratedScenes,
    PhotoViews,
    hold_out,
    parse_stages,
)
from rmacjax.finetune.sources.plans import plan_epoch
from rmacjax.finetune.state import Forward, initial_state
from rmacjax.finetune.step import Objective, Plan, embed, train_step
from rmacjax.finetune.validation import Validation, label_validator

NETWORK = Network("alexnet", False, TORCHVISION_CONVENTION, gem_p=10.0)
FORWARD = Forward(NETWORK, "mac", whitening="none")
SETTINGS = Settings(long_side=64, pool="mac")


@pytest.fixture(scope="module")
def params():
    return Params(NETWORK, initialize("alexnet", 0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six objects, six photos each; one photo is none."""
    folder = tmp_path_factory.mktemp("objects")
    rng = np.random.default_rng(0)
    bank = scenes.texture_bank(0, 8)
    for _ in range(3):
        first, second = scenes.training_batch(rng, 6, 64, textures=bank)
        for number, views in enumerate(zip(first, second, strict=True)):
            place = folder / f"object{number}"
            place.mkdir(exist_ok=True)
            for view in views:
                Image.fromarray(view).save(place / f"{len(list(place.iterdir()))}.png")
    (folder / "object0" / "0.png").write_bytes(b"no photo")
    return folder


def interrupt(monkeypatch, source, calls):
    """Someone presses Ctrl-C when the source is asked for the last of so many images."""
    name = "read" if hasattr(source, "labels") else "draw"
    real, left = getattr(type(source), name), [calls]

    def asked(self, *arguments):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(type(source), name, asked)


def plan_of(steps, **rates):
    return Plan(FORWARD, Objective("info-nce"), Rates(rate=1e-4, steps=steps, warmup=2, **rates))


def weights_of(finished):
    return jax.device_get(finished.last.weights)


def curve_of(folder):
    """Every step's numbers, as they were written down; how long it took aside."""
    with open(folder / "steps.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, len(rows) + 1))
    return [{k: v for k, v in row.items() if "second" not in k} for row in rows]


def test_a_photo_that_is_none_is_told_and_negatives_are_mined(params, folder, tmp_path, capsys):
    source = FolderOfFolders(folder, long_side=64)
    trained, held_out = hold_out(source, 0.34, seed=0)
    assert set(trained.labels.tolist()).isdisjoint(held_out.labels.tolist())
    run = Run(
        settings=SETTINGS, objects=2, negatives=1, workers=0, validate_every=3, save_every=100
    )
    from rich.console import Console

    done = fit(
        params,
        trained,
        tmp_path / "run",
        plan=plan_of(6, average=0.5),
        run=run,
        validate=label_validator(held_out, settings=SETTINGS),
        console=Console(width=200),
    )
    text = capsys.readouterr().out
    assert text.count("is not an image") == 1, text
    assert done.step == 6 and done.best is not None and 0 <= done.score <= 1
    assert "Mined negatives for epoch 1" in text
    assert "0.png" in text or "object0" not in str(
        [trained.name_of(i) for i in range(len(trained))]
    )
    with open(tmp_path / "run" / "validation.csv", encoding="utf-8") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["0", "3", "6"]


@pytest.mark.parametrize("kind", ["folder", "scenes", "views"])
def test_stopped_and_continued_is_the_same(params, folder, tmp_path, monkeypatch, kind):
    """Interrupted between two checkpoints and gone on with: the same weights to the bit."""
    if kind == "folder":
        source = FolderOfFolders(folder, long_side=64)
    elif kind == "views":
        source = PhotoViews(folder, n=6, size=64)
    else:
        source = GeneratedScenes(parse_stages("views:64:4:3,searches:64:4:9"))
    run = Run(seed=3, settings=SETTINGS, objects=2, negatives=1, workers=0, save_every=2)
    plan = plan_of(7)
    whole = fit(params, source, tmp_path / "whole", plan=plan, run=run)

    with monkeypatch.context() as patch:
        # Mining reads 36 photos, three steps 18; then comes the second epoch's mining. So the last
        # step that is taken is the fourth: the run goes on in the middle of that epoch. Views have
        # six steps an epoch.
        interrupt(patch, source, 97 if kind == "folder" else 4)
        with pytest.raises(Stopped) as stopped:
            fit(params, source, tmp_path / "parts", plan=plan, run=run)
    assert stopped.value.done.step == 4
    steps = [int(place.name) for place in (tmp_path / "parts" / "checkpoints").glob("[0-9]*")]
    assert max(steps) == 4
    done = fit(params, source, tmp_path / "parts", plan=plan, run=run)
    assert done.step == whole.step == 7 and done.last.network.gem_p == 10.0
    for name, array in weights_of(whole).items():
        np.testing.assert_array_equal(array, weights_of(done)[name])
    assert curve_of(tmp_path / "parts") == curve_of(tmp_path / "whole")
    with pytest.raises(ValueError, match=r"made with other options .*rates\.rate"):
        other = replace(plan, rates=replace(plan.rates, rate=1.0))
        fit(params, source, tmp_path / "parts", plan=other, run=run)


def test_ctrl_c_in_a_step_keeps_the_step_and_once_more_does_no_harm(params, tmp_path, monkeypatch):
    """Where one presses it: while the device is at work, and again while networks are saved."""
    source = GeneratedScenes(parse_stages("views:64:4:9"))
    run = Run(settings=SETTINGS, workers=0)
    again: list[str] = []
    said: list[str] = []

    def pressed(state, batch, *, plan):
        if int(state.step) == 2:
            again.append("from now on")
            signal.raise_signal(signal.SIGINT)
        return train_step(state, batch, plan=plan)

    def impatient(checkpoints):
        if again:
            signal.raise_signal(signal.SIGINT)
        return latest(checkpoints)

    latest = Checkpoints.latest
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", pressed)
        patch.setattr(Checkpoints, "latest", impatient)
        patch.setattr(loop.Records, "say", lambda _, sentence: said.append(sentence))
        with pytest.raises(Stopped) as stopped:
            fit(params, source, tmp_path / "parts", plan=plan_of(5), run=run)
    assert stopped.value.done.step == 3
    assert sum(sentence.startswith("Stopping") for sentence in said) == 1
    done = fit(params, source, tmp_path / "parts", plan=plan_of(5), run=run)
    whole = fit(params, source, tmp_path / "whole", plan=plan_of(5), run=run)
    for name, array in weights_of(whole).items():
        np.testing.assert_array_equal(array, weights_of(done)[name])


def test_ctrl_c_in_a_validation_keeps_the_step_and_measures_it_afterwards(
    params, tmp_path, monkeypatch
):
    source = GeneratedScenes(parse_stages("views:64:4:9"))
    run = Run(settings=SETTINGS, workers=0, validate_every=2)
    scores = {0: 0.1, 2: 0.9, 4: 0.3, 5: 0.4}
    measured: list[int] = []

    def train(folder, stops_at=None):
        def validate(_):
            step = [*scores][len(measured)]
            if step == stops_at:
                raise KeyboardInterrupt
            measured.append(step)
            return Validation(scores[step], {"score": scores[step]}, 0.0)

        return fit(params, source, tmp_path / folder, plan=plan_of(5), run=run, validate=validate)

    def killed(*_, **__):
        raise OSError("the disk is full")

    whole = train("whole")
    measured.clear()
    for stops_at, best in ((2, None), (2, None), (4, 2), (5, 2), (5, 2)):
        with pytest.raises(Stopped) as stopped:
            train("parts", stops_at)
        done = stopped.value.done
        assert (done.step, done.best_step, done.start) == (stops_at, best, 0.1)
        # What ends when it is saved again, with its score, is there still.
        with monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "save", killed)
            with pytest.raises(OSError, match="the disk is full"):
                train("parts")
        kept = {name.partition(".")[0] for name in os.listdir(tmp_path / "parts" / "checkpoints")}
        assert str(stops_at) in kept
        measured.remove(stops_at)
    done = train("parts")
    assert (done.step, done.best_step, done.score, done.start) == (5, 2, 0.9, 0.1)
    for kept, expected in ((done.best, whole.best), (done.last, whole.last)):
        for name, array in expected.weights.items():
            np.testing.assert_array_equal(kept.weights[name], array)
    assert curve_of(tmp_path / "parts") == curve_of(tmp_path / "whole")
    with open(tmp_path / "parts" / "validation.csv", encoding="utf-8") as file:
        found = [(int(row["step"]), float(row["score"])) for row in csv.DictReader(file)]
    assert found == [*scores.items()]
    assert not any("." in name for name in os.listdir(tmp_path / "parts" / "checkpoints"))


def test_photos_lost_in_a_validation_keep_the_step(params, tmp_path, monkeypatch):
    source = GeneratedScenes(parse_stages("views:64:4:9"))
    run = Run(settings=SETTINGS, workers=0, validate_every=2)
    calls: list[int] = []

    def validate(_):
        calls.append(1)
        if len(calls) in (2, 4):
            raise OSError("none of the photos could be read")
        return Validation(0.5, {"score": 0.5}, 0.0)

    def train(folder="parts"):
        return fit(params, source, tmp_path / folder, plan=plan_of(4), run=run, validate=validate)

    def full(*_, **__):
        raise OSError("the disk is full")

    said: list[str] = []
    with monkeypatch.context() as patch, pytest.raises(OSError, match="none of the photos"):
        patch.setattr(loop.Records, "say", lambda _, sentence: said.append(sentence))
        train()
    assert "Checkpoints are kept: run it again to go on from the last." in said
    with Checkpoints(tmp_path / "parts" / "checkpoints") as checkpoints:
        assert checkpoints.latest() == 2 and checkpoints.score(2) is None
    # Where the step cannot be kept either, what came first is told.
    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "save", full)
        with pytest.raises(OSError, match="the disk is full"):
            train()  # measures step 2, which cannot be saved again
    calls[:] = [1, 1]
    with monkeypatch.context() as patch:
        write, steps = ocp.CheckpointManager.save, []

        def later(manager, step, *arguments, **options):
            steps.append(step)
            return (full if step > 2 else write)(manager, step, *arguments, **options)

        patch.setattr(ocp.CheckpointManager, "save", later)
        with pytest.raises(OSError, match="none of the photos"):
            train()
    assert steps == [2, 4]
    done = train()
    calls.clear()
    calls.extend([1] * 5)
    whole = train("whole")
    assert done.step == whole.step == 4 and (done.best_step, done.score) == (2, 0.5)
    for name, array in whole.last.weights.items():
        np.testing.assert_array_equal(done.last.weights[name], array)


@pytest.mark.parametrize("how", ["at once", "in the background", "always"])
def test_a_score_that_was_not_saved_is_measured_again(params, tmp_path, monkeypatch, how):
    """Saving a measured step fails: it is kept without a score, or not at all."""
    scores = [0.1, 0.9, *([0.1] if how == "always" else []), 0.9, 0.3]
    source = GeneratedScenes(parse_stages("views:64:4:9"))
    run = Run(settings=SETTINGS, workers=0, validate_every=2)
    measured: list[float] = []

    def validate(_):
        measured.append(scores[len(measured)])
        return Validation(measured[-1], {"score": measured[-1]}, 0.0)

    def train():
        return fit(params, source, tmp_path, plan=plan_of(4), run=run, validate=validate)

    save, wait = Checkpoints.save, Checkpoints.wait
    failing: list[int] = []

    def fails(checkpoints, step, state, extras=None, *, score=None):
        if score is not None and how == "in the background":
            failing.append(step)
        elif score is not None or how == "always":
            raise OSError("hiccup")
        else:
            save(checkpoints, step, state, extras)

    def waits(checkpoints):
        wait(checkpoints)
        if failing:
            failing.clear()
            raise OSError("hiccup")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", fails)
        patch.setattr(Checkpoints, "wait", waits)
        with pytest.raises(OSError, match="hiccup"):
            train()
    done = train()
    assert (done.step, done.best_step, done.score) == (4, 2, 0.9)
    with open(tmp_path / "validation.csv", encoding="utf-8") as file:
        found = [(int(row["step"]), float(row["score"])) for row in csv.DictReader(file)]
    assert found == [(0, 0.1), (2, 0.9), (4, 0.3)]


@pytest.mark.parametrize("at", [2, 4, 5])
def test_ctrl_c_while_a_checkpoint_is_saved_stops_as_anywhere_else(
    params, tmp_path, monkeypatch, at
):
    """It was saved once more then, and refused: at a checkpoint on the way, and at the last."""
    source = GeneratedScenes(parse_stages("views:64:4:9"))
    run = Run(settings=SETTINGS, workers=0, save_every=2)
    write = ocp.CheckpointManager.save

    def pressed(manager, step, *arguments, **options):
        if step == at:
            signal.raise_signal(signal.SIGINT)
        return write(manager, step, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "save", pressed)
        with pytest.raises(Stopped) as stopped:
            fit(params, source, tmp_path, plan=plan_of(5), run=run)
    assert stopped.value.done.step == at
    assert fit(params, source, tmp_path, plan=plan_of(5), run=run).step == 5


def test_a_loss_that_is_no_number_says_where_and_what_to_try(params, tmp_path):
    source = GeneratedScenes(parse_stages("views:64:4:9"))
    broken = {**params.weights, "conv5.bias": params.weights["conv5.bias"].at[0].set(np.nan)}
    with pytest.raises(Diverged, match=r"in step 1 the loss is nan .* Try a lower rate") as told:
        fit(
            params._replace(weights=broken),
            source,
            tmp_path,
            plan=plan_of(3),
            run=Run(settings=SETTINGS, workers=0),
        )
    assert told.value.done is None


def test_a_loss_that_is_no_number_names_the_photos(params, folder, tmp_path):
    source = FolderOfFolders(folder, long_side=64)
    plan = plan_of(3)
    plan = replace(plan, rates=replace(plan.rates, rate=1e30, warmup=0))
    run = Run(settings=SETTINGS, objects=3, images=4, workers=0)
    named = r"images are \S+object\d/\d\.png, .* and 4 more\. Try a lower rate"
    with pytest.raises(Diverged, match=named):
        fit(params, source, tmp_path, plan=plan, run=run)


def test_what_was_best_before_the_loss_was_no_number_is_not_lost(params, tmp_path, monkeypatch):
    source = GeneratedScenes(parse_stages("views:64:4:9"))
    run = Run(settings=SETTINGS, workers=0, validate_every=1)
    scores = iter([0.1, 0.2, 0.9, 0.5])
    real = loop.train_step

    def broken(state, batch, *, plan):
        if int(state.step) == 3:
            damaged = state.trained.weights["conv5.bias"] + np.nan
            weights = {**state.trained.weights, "conv5.bias": damaged}
            state = state._replace(trained=state.trained._replace(weights=weights))
            after, facts = real(state, batch, plan=plan)
            assert int(after.step) == 3
            return whole[-1], facts
        after, facts = real(state, batch, plan=plan)
        whole.append(jax.tree.map(jnp.copy, after))
        return after, facts

    whole = []
    monkeypatch.setattr(loop, "train_step", broken)

    def judge(_):
        score = next(scores)
        return Validation(score, {"score": score}, 0.0)

    with pytest.raises(Diverged, match="in step 4 the loss is nan") as told:
        fit(params, source, tmp_path, plan=plan_of(9), run=run, validate=judge)
    done = told.value.done
    assert (done.step, done.best_step, done.score) == (3, 2, 0.9)
    for kept, step in ((done.best, 2), (done.last, 3)):
        for name, array in whole[step - 1].trained.weights.items():
            np.testing.assert_array_equal(kept.weights[name], array)


def test_a_photo_too_small_to_be_mined_for_is_not_called_skipped(params, tmp_path, capsys):
    """Views of it are larger, and are trained on."""
    from rich.console import Console

    rng = np.random.default_rng(0)
    for number, side in enumerate((90, 90, 90, 20)):
        Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(
            tmp_path / f"{number}.png"
        )
    run = Run(settings=SETTINGS, negatives=1, workers=0)
    out = Console(width=300)
    source = PhotoViews(tmp_path, n=2, size=64)
    fit(params, source, tmp_path / "run", plan=plan_of(2), run=run, console=out)
    said = capsys.readouterr().out
    assert said.count("3.png has 20 x 20 pixels") == 1 and "Skipped" not in said, said
    assert f"Without mined negatives: {tmp_path}" in said


def test_an_epoch_whose_last_step_is_passed_over_says_so(params, tmp_path, capsys):
    """What is said of it belongs to no step."""
    from rich.console import Console

    rng = np.random.default_rng(0)
    files = []
    for number in range(4):
        (tmp_path / f"object{number}").mkdir()
        for name in "ab":
            files.append(tmp_path / f"object{number}" / f"{name}.png")
            Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(files[-1])
    source = FolderOfFolders(tmp_path, long_side=64)
    for seed in range(99):
        first, second = (
            plan_epoch(source, np.random.default_rng([seed, n]), objects=2) for n in (0, 1)
        )
        if set(second[0].labels).isdisjoint(first[-1].labels):
            break
    else:
        pytest.fail("no seed has such epochs")
    for index in first[-1].indices:
        files[index].write_bytes(b"no photo")
    run = Run(seed=seed, settings=SETTINGS, objects=2, workers=0)
    out = Console(width=300)
    fit(params, source, tmp_path / "run", plan=plan_of(2), run=run, console=out)
    said = capsys.readouterr().out.split("step 2 of 2")[0]
    assert said.count("is not an image") == 4
    assert "Skipped: a batch was passed over: no two of its images match" in said


def test_what_is_foreseen_is_what_training_sees(params, folder):
    source = FolderOfFolders(folder, long_side=64)
    run = Run(settings=SETTINGS, objects=2, negatives=1)
    batch, shapes, steps, _ = foresee(source, plan_of(3), run)
    assert len(batch.labels) == 2 * 3 and steps == 3 and shapes == 1
    drawn = GeneratedScenes(parse_stages("views:64:6:2,searches:96:4:4,views:96:2:2"))
    for total, (n, side), sizes in ((2, (6, 64), 1), (3, (4, 96), 2), (9, (4, 96), 5)):
        batch, shapes, steps, _ = foresee(drawn, plan_of(total), run)
        assert len(batch.labels) == 2 * n and steps is None
        assert batch.blocks[1].images.shape[1] == side
        found = [drawn.draw(0, step) for step in range(total)]
        assert shapes == sizes == len({(d.first.shape, d.second.shape) for d in found})


def test_the_largest_of_several_sizes_is_foreseen(tmp_path):
    """Eleven objects of landscape photos and one of portraits: one step has to hold both."""
    for number in range(12):
        (tmp_path / str(number)).mkdir()
        for name in "ab":
            size = (64, 128) if number == 7 else (128, 64)
            Image.new("RGB", size, (number, 9, 99)).save(tmp_path / str(number) / f"{name}.png")
    source = FolderOfFolders(tmp_path, long_side=128)
    for seed in range(4):
        seen = foresee(source, plan_of(9), Run(seed=seed, settings=SETTINGS, objects=2))
        assert seen.shapes == 2 and seen.steps_per_epoch == 6
        assert seen.batch.blocks[0].images.shape == (4, 128, 128, 3)


def test_what_was_learned_before_the_loss_broke_is_kept(capsys, tmp_path):
    """The run ends with a network of the steps before; what never got better is told."""
    from rmacjax.cli import main
    from rmacjax.weights import describe_file

    words = ["finetune", str(tmp_path / "run"), "--data", "scenes", "--stages", "views:64:4:9"]
    words += ["--weights", "untrained:alexnet", "--loss", "info-nce", "--whitening", "none"]
    words += ["--steps", "9", "--rate", "1e18", "--warmup", "0", "--average", "0", "--workers", "0"]
    assert main(words) == 1
    err = capsys.readouterr().err
    assert "in another folder" in err and "Traceback" not in err
    path = tmp_path / "run" / "last.safetensors"
    assert f"Wrote {path}" in err
    step = int(err.split("in step ")[1].split()[0])
    assert step > 1 and f"for {step - 1} steps" in describe_file(path)["origin"]


def test_killed_and_continued_is_the_same(folder, tmp_path):
    """`kill -9` in an epoch's middle, with workers: the same loss curve and the same network."""
    words = [
        *("--data", str(folder), "--weights", "untrained:alexnet", "--loss", "info-nce"),
        *("--pool", "mac", "--long-side", "64", "--objects", "2", "--images", "6", "--steps", "12"),
        *("--warmup", "2", "--save-every", "2", "--workers", "1", "--rate", "1e-4"),
        *("--negatives", "1"),
    ]

    def start(out):
        return subprocess.Popen(
            [sys.executable, "-m", "rmacjax.finetune", str(out), *words],
            stderr=subprocess.PIPE,
            text=True,
        )

    whole = start(tmp_path / "whole")
    _, err = whole.communicate()
    assert whole.returncode == 0, err
    assert "Skipped: " in err and "0.png" in err
    killed = start(tmp_path / "parts")
    for line in killed.stderr:
        if line.startswith("step 10 "):
            break
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    again = start(tmp_path / "parts")
    _, err = again.communicate()
    assert again.returncode == 0, err
    # Where the eighth or tenth was written by then, in the middle of an epoch.
    assert 0 < int(err.split("Going on after step ")[1].split(".")[0]) < 12
    assert curve_of(tmp_path / "parts") == curve_of(tmp_path / "whole")
    with (
        safe_open(tmp_path / "whole" / "last.safetensors", "numpy") as one,
        safe_open(tmp_path / "parts" / "last.safetensors", "numpy") as other,
    ):
        assert list(one.keys()) == list(other.keys())
        for name in list(one.keys()):
            np.testing.assert_array_equal(one.get_tensor(name), other.get_tensor(name))


@pytest.mark.parametrize("pool", ["mac", "gem", "rmac", "rgem"])
def test_photos_of_any_shape_are_trained_on_whole(params, tmp_path, pool):
    """What the loss sees of portrait and landscape photos is what `describe` gives of them."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, size, np.uint8) for size in [(96, 64, 3), (64, 96, 3)] * 2]
    for number, image in enumerate(images):
        (tmp_path / f"object{number % 2}").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / f"object{number % 2}" / f"{number}.png")
    source = FolderOfFolders(tmp_path, long_side=96)
    forward = replace(FORWARD, pool=pool)
    plan = Plan(forward, Objective("info-nce"), Rates(steps=1))
    batch, *_ = foresee(source, plan, Run(settings=SETTINGS, objects=2))
    (block,) = batch.blocks
    trained = initial_state(params, forward, optimizer(plan.rates)).trained
    seen, _ = embed(trained, None, jax.tree.map(jax.numpy.asarray, block), forward, False)
    photos = [image[:h, :w] for image, (h, w) in zip(block.images, block.sizes, strict=True)]
    network = replace(NETWORK, gem_p=10.0)
    served = describe(
        params._replace(network=network), photos, settings=Settings(long_side=96, pool=pool)
    )
    np.testing.assert_allclose(np.asarray(seen.descriptors), np.asarray(served), atol=2e-5)


def test_the_same_photos_are_the_same_source_wherever_they_lie(
    params, folder, tmp_path, monkeypatch
):
    shutil.copytree(folder, tmp_path / "copied")
    monkeypatch.chdir(tmp_path)
    run = Run(settings=SETTINGS, workers=0, objects=2)
    for spelled in ("copied", "./copied", tmp_path / "copied", folder):
        fit(params, FolderOfFolders(spelled, long_side=64), "run", plan=plan_of(1), run=run)
    (tmp_path / "copied" / "object1" / "1.png").rename(tmp_path / "copied" / "object2" / "new.png")
    with pytest.raises(ValueError, match=r"source\.digest of names, labels and pairs"):
        fit(params, FolderOfFolders("copied", long_side=64), "run", plan=plan_of(1), run=run)


def test_other_pairs_of_the_same_photos_are_another_source(folder):
    source = FolderOfFolders(folder, long_side=64)
    known = []
    for pairs in (None, [[3, 4]], [[3, 5]]):
        source.pairs = None if pairs is None else np.asarray(pairs)
        known.append(str(identity(source)))
    known.append(str(identity(FolderOfFolders(folder, long_side=64))))
    known.append(str(identity(FolderOfFolders(folder, long_side=96))))
    assert known[3] == known[0] and len(set(known)) == 4


def test_a_run_that_ended_early_stays_ended_and_counts_on_when_stopped(params, folder, tmp_path):
    """Patience survives an interruption: the same end as the whole run's."""
    source = FolderOfFolders(folder, long_side=64)
    run = Run(settings=SETTINGS, workers=0, objects=2, validate_every=1, patience=3)
    scores = [0.5, 0.4, 0.6, 0.5, 0.55, 0.6, 0.9]

    def judge(scores, fails_at=None):
        left = list(scores)

        def validate(_):
            if len(left) == fails_at:
                raise KeyboardInterrupt
            return Validation(left[0], {"score": left.pop(0)}, 0.0)

        return validate

    # Step 0 is measured too, but only what has been learned counts: 0.6 of step 2 is the best.
    done = fit(params, source, tmp_path / "a", plan=plan_of(9), run=run, validate=judge(scores))
    assert (done.early, done.step, done.score) == (True, 5, 0.6)
    words = {"plan": plan_of(9), "run": run}
    with pytest.raises(KeyboardInterrupt):
        fit(params, source, tmp_path / "b", validate=judge(scores, fails_at=3), **words)
    parts = fit(params, source, tmp_path / "b", validate=judge(scores[4:]), **words)
    assert (parts.early, parts.step, parts.score) == (True, 5, 0.6)
    again = fit(params, source, tmp_path / "b", validate=judge([]), **words)
    assert (again.early, again.step) == (True, 5)
    # Whoever waits less, after all, is told that it ended.
    words["run"] = replace(run, patience=2)
    sooner = fit(params, source, tmp_path / "b", validate=judge([]), **words)
    assert (sooner.early, sooner.step) == (True, 5)
    # Whoever waits longer goes on, and saves as often as they like.
    words["run"] = replace(run, patience=5, save_every=2)
    longer = fit(params, source, tmp_path / "b", validate=judge([0.1, 0.7, 0.2, 0.3]), **words)
    assert (longer.early, longer.step, longer.best_step, longer.score) == (False, 9, 7, 0.7)
    words["run"] = replace(run, patience=2)  # the wait was over with the last step
    assert not fit(params, source, tmp_path / "b", validate=judge([]), **words).early


def test_devices_that_cannot_share_a_step_are_said_before_anything_is_done(
    params, folder, tmp_path
):
    def never(_):
        raise AssertionError("measured before it was known that no step can be taken")

    views = PhotoViews(folder, n=3, size=64)
    for source, negatives, n in (
        (FolderOfFolders(folder, long_side=64), 1, 9),
        (GeneratedScenes(parse_stages("views:64:4:2,searches:64:3:2")), 0, 3),
        (views, 0, 3),
        (views, 2, 9),
    ):
        run = Run(settings=SETTINGS, workers=0, objects=3, negatives=negatives, validate_every=2)
        with pytest.raises(ValueError, match=f"{n} images cannot be shared evenly by 2 devices"):
            fit(params, source, tmp_path, plan=plan_of(3), run=run, validate=never)
    assert not list(tmp_path.iterdir())


def test_another_source_or_measure_is_not_gone_on_with(params, tmp_path):
    run = Run(settings=SETTINGS, workers=0, measured_on="a")
    fit(params, GeneratedScenes(parse_stages("views:64:4:9")), tmp_path, plan=plan_of(1), run=run)
    for stages, measured in (("views:64:4:8", "a"), ("views:64:4:9", "b")):
        with pytest.raises(ValueError, match="made with other options"):
            fit(
                params,
                GeneratedScenes(parse_stages(stages)),
                tmp_path,
                plan=plan_of(1),
                run=replace(run, measured_on=measured),
            )
    with pytest.raises(ValueError, match="save_every must be at least 1"):
        Run(save_every=0)
