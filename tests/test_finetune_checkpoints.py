"""Checkpoints: what comes back is what was saved, whatever happened in between."""

import gc
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rmacjax.finetune.checkpoints import Checkpoints
from rmacjax.finetune.interruption import undisturbed


class State(NamedTuple):
    weights: dict[str, jax.Array]
    moments: optax.OptState
    step: jax.Array


def state_of(value: float) -> State:
    weights = {"conv1.kernel": jnp.full((3, 3, 3, 8), value), "conv1.bias": jnp.zeros(8)}
    chain = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return State(weights, chain.init(weights), jnp.int32(value))


def same(left, right) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert one.dtype == other.dtype and type(one) is type(other)
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.fixture
def saved(tmp_path) -> Path:
    """A folder with a checkpoint of step 3."""
    with Checkpoints(tmp_path / "run", made_with={"net": "alexnet"}) as checkpoints:
        checkpoints.save(3, state_of(3.0), {"epoch": 1})
    return tmp_path / "run"


def test_state_and_extras_come_back_as_they_were(tmp_path, rng):
    state = state_of(2.5)
    pytree = {
        "state": state,
        "weights": {
            f"conv{i}.kernel": jnp.asarray(rng.random((3, 3, i, 8), "f4")) for i in range(4)
        },
        "half": jnp.asarray(rng.normal(size=(4, 2)), jnp.bfloat16),
        "nothing": (None, jnp.zeros((0, 5))),
        "numpy": rng.integers(0, 9, (2, 2)),
        "places": [np.zeros((0, 2), np.float64), jnp.bool_(True)],
    }
    extras = {
        "pipeline": b"\x00\xff state",
        "mined": {"17": rng.integers(0, 99, (5, 3)), "empty": np.zeros((0, 4), np.float32)},
        "epoch": 7,
        "best": None,
        "limits": [float("inf"), -1.5e-300],
        "options": {"levels": 3, "scales": [1.0, 0.7071], "dict": {"array": "no", "on": True}},
        "name": "Universität",
        "seed": np.uint64(2**64 - 1),
    }
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.latest() is None and checkpoints.best() is None
        checkpoints.save(12, pytree, extras, score=0.5)
        assert checkpoints.latest() == 12
    with Checkpoints(tmp_path / "run") as checkpoints:
        zeros = jax.tree.map(lambda leaf: leaf * 0 if leaf.dtype != bool else ~leaf, pytree)
        restored, read = checkpoints.restore(zeros)
        same(restored, pytree)
        assert checkpoints.score(12) == 0.5
        abstract = jax.tree.map(
            lambda leaf: (
                leaf
                if isinstance(leaf, np.ndarray)
                else jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            ),
            pytree,
        )
        same(checkpoints.restore(abstract, step=12)[0], pytree)
    assert list(read) == list(extras)
    for key in ("pipeline", "epoch", "best", "limits", "options", "name"):
        assert read[key] == extras[key] and type(read[key]) is type(extras[key])
    assert read["seed"].dtype == np.uint64 and read["seed"] == 2**64 - 1
    for key, array in extras["mined"].items():
        assert read["mined"][key].dtype == array.dtype
        np.testing.assert_array_equal(read["mined"][key], array)
        read["mined"][key][...] = 0  # and may be written to


def test_best_and_last_are_kept(tmp_path):
    scores = {1: 0.3, 2: 0.8, 3: None, 4: 0.8, 5: 0.1, 6: float("nan"), 7: None}
    kept = {1: [1], 2: [1, 2], 3: [2, 3], 4: [2, 3, 4], 5: [2, 4, 5], 6: [2, 5, 6], 7: [2, 6, 7]}
    folder = tmp_path / "run"
    for step, score in scores.items():
        # As in a training that is stopped after each save: what was best is known from the files.
        with Checkpoints(folder) as checkpoints:
            checkpoints.save(step, {"x": jnp.float32(step)}, score=score)
            assert checkpoints.steps() == kept[step]
            assert checkpoints.best() == (1 if step == 1 else 2)
    with Checkpoints(folder, keep_best=2, keep_last=1) as checkpoints:
        assert checkpoints.restore({"x": jnp.float32(0)}, step=2)[0]["x"] == 2
        checkpoints.save(8, {"x": jnp.float32(8)}, score=0.9)
        checkpoints.save(9, {"x": jnp.float32(9)})
        assert checkpoints.steps() == [2, 8, 9]
        assert checkpoints.best() == 8
        assert checkpoints.score(9) is None


def test_a_step_that_is_there_is_not_saved_again(tmp_path):
    with Checkpoints(tmp_path / "run", keep_last=3) as checkpoints:
        for step in (10, 20, 30):
            checkpoints.save(step, {"x": jnp.float32(step)})
        with pytest.raises(ValueError, match=r"step 30, so step 30 cannot be saved after it"):
            checkpoints.save(30, {"x": jnp.float32(0)})
        with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 15.* 10, 20, 30"):
            checkpoints.restore({"x": jnp.float32(0)}, step=15)
        assert checkpoints.steps() == [10, 20, 30]
        assert checkpoints.restore({"x": jnp.float32(0)})[0]["x"] == 30


def test_arrays_are_laid_out_over_the_devices_as_those_that_are_wanted(tmp_path):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.NamedSharding(mesh, jax.P("data"))
    everywhere = jax.NamedSharding(mesh, jax.P())
    alone = jax.sharding.SingleDeviceSharding(jax.devices()[1])
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    with Checkpoints(tmp_path / "run") as checkpoints:
        for step, sharding in enumerate((split, everywhere, alone)):
            checkpoints.save(step, {"x": jax.device_put(values, sharding)})
            for wanted in (split, everywhere, alone):
                like = {"x": jax.device_put(np.zeros_like(values), wanted)}
                for each in (
                    like,
                    {"x": jax.ShapeDtypeStruct((4, 3), values.dtype, sharding=wanted)},
                ):
                    restored = checkpoints.restore(each)[0]["x"]
                    assert restored.sharding == wanted
                    np.testing.assert_array_equal(np.asarray(restored), values)


def test_arrays_bound_to_no_device_stay_so_and_join_those_on_all(tmp_path):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    batch = jax.device_put(np.ones((4, 3), np.float32), jax.NamedSharding(mesh, jax.P("data")))
    step = jax.jit(lambda state, batch: state["w"] * jnp.sum(batch) + jnp.sum(state["none"]))
    state = {"w": jnp.float32(2.5), "none": jnp.zeros((0,))}
    with Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(1, jax.device_put(state, jax.NamedSharding(mesh, jax.P())))
        for like in (state, jax.eval_shape(lambda: state)):
            restored, _ = checkpoints.restore(like)
            assert not restored["w"].committed and not restored["none"].committed
            assert step(restored, batch) == step(state, batch) == 30
        bound = jax.device_put(state, jax.devices()[1])
        assert checkpoints.restore(bound)[0]["none"].devices() == {jax.devices()[1]}


def test_an_older_checkpoint_half_removed_harms_nobody(tmp_path):
    """What is superfluous is removed file by file, which may be interrupted."""
    folder = tmp_path / "run"
    with Checkpoints(folder, made_with={"net": "a"}) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"x": jnp.float32(step)}, {"epoch": step}, score=step / 10)
    for part in ("metrics", "_CHECKPOINT_METADATA", "state", "extras"):
        place = folder / "1" / part
        shutil.rmtree(place) if place.is_dir() else place.unlink()
        with Checkpoints(folder, made_with={"net": "a"}) as checkpoints:
            assert checkpoints.latest() == checkpoints.best() == 2
            assert checkpoints.restore({"x": jnp.float32(0)}) == ({"x": 2}, {"epoch": 2})
    with pytest.raises(ValueError, match="net is a there and b here"):
        Checkpoints(folder, made_with={"net": "b"})
    with Checkpoints(folder, made_with={"net": "a"}) as checkpoints:
        checkpoints.save(3, {"x": jnp.float32(3)})
        assert checkpoints.steps() == [2, 3]


def test_what_was_saved_may_be_donated_or_overwritten_at_once(tmp_path):
    step = jax.jit(lambda x: {"x": x["x"] * 0 - 1}, donate_argnums=0)
    counter = np.arange(100_000)
    with Checkpoints(tmp_path / "run") as checkpoints:
        state = {"x": jnp.arange(3_000_000, dtype=jnp.float32)}
        extras = {"mined": counter}
        checkpoints.save(1, state | {"n": counter}, extras)
        counter[:] = -1
        jax.block_until_ready(step(state))
        restored, read = checkpoints.restore({"x": jnp.zeros(3_000_000), "n": counter})
    np.testing.assert_array_equal(np.asarray(restored["x"]), np.arange(3_000_000))
    np.testing.assert_array_equal(restored["n"], np.arange(100_000))
    np.testing.assert_array_equal(read["mined"], np.arange(100_000))


@pytest.mark.parametrize("then_go_on", [False, True])
def test_ctrl_c_waits_until_a_checkpoint_is_read_or_written(tmp_path, then_go_on, monkeypatch):
    """Orbax is asked to work while someone presses Ctrl-C twice: nothing is called damaged."""
    state = {"x": jnp.arange(3_000_000, dtype=jnp.float32)}
    with Checkpoints(tmp_path / "run") as checkpoints:
        for name, work in (
            ("save", lambda: checkpoints.save(1, state)),
            ("restore", lambda: checkpoints.restore(state)),
        ):
            real, done = getattr(checkpoints._manager, name), []

            def disturbed(*arguments, _real=real, _done=done, **options):
                os.kill(os.getpid(), signal.SIGINT)
                found = _real(*arguments, **options)
                os.kill(os.getpid(), signal.SIGINT)
                _done.append(found)
                return found

            monkeypatch.setattr(checkpoints._manager, name, disturbed)
            if then_go_on:
                with undisturbed(then_go_on=True):
                    work()
            else:
                with pytest.raises(KeyboardInterrupt):
                    work()
            assert len(done) == 1
            monkeypatch.setattr(checkpoints._manager, name, real)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        np.testing.assert_array_equal(checkpoints.restore(state)[0]["x"], state["x"])


TRAINING = """
import sys, jax.numpy as jnp
from rmacjax.finetune.checkpoints import Checkpoints
with Checkpoints(sys.argv[1]) as checkpoints:
    start = checkpoints.latest() or 0
    if start:
        state, extras = checkpoints.restore({"x": jnp.zeros(4_000_000), "n": jnp.int32(0)})
        assert (state["x"] == start).all() and state["n"] == start and extras == {"epoch": start}
    for step in range(start + 1, start + 1000):
        state = {"x": jnp.full(4_000_000, float(step)), "n": jnp.int32(step)}
        checkpoints.save(step, state, {"epoch": step})
        print(step, flush=True)
"""


def unfinished(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if "tmp" in name]


def test_a_training_killed_while_it_saves_goes_on_from_the_one_before(tmp_path):
    folder = tmp_path / "run"
    reached, cut = 0, 0
    for attempt in range(3):
        program = subprocess.Popen(
            [sys.executable, "-c", TRAINING, str(folder)], stdout=subprocess.PIPE, text=True
        )
        # The second save has begun, so the first is there; then, as soon as files are written.
        for _ in range(2):
            assert program.stdout.readline(), "the training died before it was killed"
        limit = time.monotonic() + 20
        while not unfinished(folder) and time.monotonic() < limit:
            time.sleep(0.0005)
        time.sleep(0.006 * attempt)
        program.send_signal(signal.SIGKILL)
        program.wait()
        program.stdout.close()
        cut += bool(unfinished(folder))
        with Checkpoints(folder) as checkpoints:
            latest = checkpoints.latest()
            assert latest > reached
            reached = latest
            like = {"x": jnp.zeros(4_000_000), "n": jnp.int32(0)}
            for step in checkpoints.steps():
                state, extras = checkpoints.restore(like, step=step)
                assert (np.asarray(state["x"]) == step).all()
                assert state["n"] == step and extras == {"epoch": step}
        # What was left is removed beside the work.
        while unfinished(folder) and time.monotonic() < limit + 20:
            time.sleep(0.01)
        assert not unfinished(folder)
    assert cut, "no save was cut short, so nothing was tested"


def test_options_that_differ_are_named(saved):
    with Checkpoints(saved, made_with={"net": "alexnet"}) as checkpoints:
        assert checkpoints.latest() == 3
    with Checkpoints(saved) as checkpoints:
        assert checkpoints.latest() == 3
    options = {"net": "vgg16", "loss": {"margin": 0.1, "scales": (1.0, 0.5)}}
    with pytest.raises(
        ValueError,
        match=r"made with other options \(net is alexnet there and vgg16 here; loss.margin is "
        r"missing there and 0.1 here; loss.scales is missing there and \[1.0, 0.5\] here\): "
        r"continue with what it was begun with, or name another folder",
    ):
        Checkpoints(saved, made_with=options)
    with Checkpoints(saved.parent / "other", made_with=options) as checkpoints:
        checkpoints.save(1, {"x": jnp.zeros(2)})
    with Checkpoints(saved.parent / "other", made_with=options) as checkpoints:
        assert checkpoints.latest() == 1


def test_arrays_that_differ_are_named(saved):
    with Checkpoints(saved) as checkpoints:
        like = state_of(0.0)
        wider = like._replace(
            weights={"conv1.kernel": jnp.zeros((3, 3, 3, 9)), "new": jnp.zeros(1)}
        )
        with pytest.raises(
            ValueError,
            match=r"another network or optimizer \(weights.conv1.bias is float32\[8\] there and "
            r"missing here; weights.conv1.kernel is float32\[3, 3, 3, 8\] there and "
            r"float32\[3, 3, 3, 9\] here; weights.new is missing there",
        ):
            checkpoints.restore(wider)
        half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), like)
        with pytest.raises(
            ValueError, match=r"float32\[8\] there and bfloat16\[8\].*; and 3 more\)"
        ):
            checkpoints.restore(half)
        same(checkpoints.restore(like)[0], state_of(3.0))


def test_what_cannot_be_kept_is_refused(tmp_path):
    with Checkpoints(tmp_path / "run") as checkpoints:
        with pytest.raises(FileNotFoundError, match=r"there is no checkpoint in .*; there is none"):
            checkpoints.restore({})
        with pytest.raises(TypeError, match=r"a.0 of the state is int, not an array"):
            checkpoints.save(1, {"a": [1]})
        with pytest.raises(TypeError, match=r"key of the state is a random key"):
            checkpoints.save(1, {"key": jax.random.key(0)})
        for extras in ({"x": object()}, {"x": {1: 2}}, {"x": np.asarray([None])}, {"x": {3}}):
            with pytest.raises(TypeError, match="extras hold JSON's types with names as keys"):
                checkpoints.save(1, {}, extras)
        with pytest.raises(ValueError, match=r"two arrays of the state are called a\.b"):
            checkpoints.save(1, {"a": {"b": jnp.zeros(1)}, "a.b": jnp.zeros(1)})
        assert checkpoints.steps() == []
        with pytest.raises(OSError, match="another training is at work in"):
            Checkpoints(tmp_path / "run")
    Checkpoints(tmp_path / "run").close()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot be kept in '.*file' \(.*\): name another folder"):
        Checkpoints(tmp_path / "file")
    for numbers in ({"keep_last": 0}, {"keep_best": -1}):
        with pytest.raises(ValueError, match="keep_best must be at least 0 and keep_last at least"):
            Checkpoints(tmp_path / "run", **numbers)


def test_what_orbax_raises_of_no_kind_is_a_damaged_checkpoint_too(saved, monkeypatch):
    def broken(*_, **__):
        raise Exception("an array could not be read")

    with Checkpoints(saved) as checkpoints:
        monkeypatch.setattr(checkpoints._manager, "restore", broken)
        with pytest.raises(OSError, match=r"3' cannot be read \(an array could not be read\): if"):
            checkpoints.restore(state_of(0.0))

        def short(*_, **__):
            raise MemoryError

        # No word of damage: someone might remove what is sound.
        monkeypatch.setattr(checkpoints._manager, "restore", short)
        with pytest.raises(MemoryError):
            checkpoints.restore(state_of(0.0))


@pytest.mark.parametrize("left", ['{"s', "{}", "[]", '{"score": NaN, "step": 1}', "\udcff"])
def test_a_damaged_score_is_told_and_lets_go_of_the_folder(tmp_path, left):
    folder = tmp_path / "run"
    with Checkpoints(folder) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"x": jnp.ones(3)}, score=0.5)
    file = folder / "1" / "metrics" / "metrics"
    whole = file.read_bytes()
    file.write_text(left, errors="surrogateescape")
    with pytest.raises(OSError, match=r"'.*run.1' cannot be read \(.+\): if it is damaged, remove"):
        Checkpoints(folder)
    file.write_bytes(whole)
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.score(1) == 0.5


def test_what_is_saved_again_is_there_whenever_the_program_ends(tmp_path, monkeypatch):
    folder = tmp_path / "run"

    def killed(*_, **__):
        raise RuntimeError("killed")

    def found():
        with Checkpoints(folder) as checkpoints:
            assert sorted(os.listdir(folder)) == ["2", "in-use"]
            state, extras = checkpoints.restore({"x": jnp.float32(0)})
            return float(state["x"]), extras["epoch"], checkpoints.score(2)

    def again(value, score):
        with Checkpoints(folder) as checkpoints:
            checkpoints.save_again(2, {"x": jnp.float32(value)}, {"epoch": value}, score=score)

    with Checkpoints(folder) as checkpoints:
        checkpoints.save(2, {"x": jnp.float32(1)}, {"epoch": 1})
        with pytest.raises(FileNotFoundError, match="no checkpoint of step 3"):
            checkpoints.save_again(3, {"x": jnp.float32(1)}, {}, score=0.5)
    with monkeypatch.context() as patch:  # after the old one is put aside
        patch.setattr(Checkpoints, "save", killed)
        with pytest.raises(RuntimeError, match="killed"):
            again(5, 0.5)
    assert (folder / "2.before").is_dir() and not (folder / "2").exists()
    assert found() == (1.0, 1, None)
    with monkeypatch.context() as patch:  # before the old one is removed
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(RuntimeError, match="killed"):
            again(6, 0.6)
    assert (folder / "2.before").is_dir() and (folder / "2").is_dir()
    assert found() == (6.0, 6, 0.6)
    again(7, 0.7)
    assert found() == (7.0, 7, 0.7)
    (folder / "notes.before").touch()  # whoever put it there
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.latest() == 2 and (folder / "notes.before").exists()


LOST = ["garbage", "{}", "[]", '{"custom_metadata": "x"}']
LOST += ['{"custom_metadata": {}}', '{"custom_metadata": {"made_with": null}}']
LOST += ['{"custom_metadata": {"made_with": "x"}}']


@pytest.mark.parametrize("left", [*LOST, None])
def test_lost_options_are_told_not_passed_over(tmp_path, left):
    folder = tmp_path / "run"
    with Checkpoints(folder, made_with={"net": "a"}) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"x": jnp.float32(step)})
    file = folder / "2" / "_CHECKPOINT_METADATA"
    file.unlink() if left is None else file.write_text(left)
    with pytest.raises(OSError, match=r"cannot be read \(.*\): if .* damaged, remove that"):
        Checkpoints(folder, made_with={"net": "a"})
    shutil.rmtree(folder / "2")
    with Checkpoints(folder, made_with={"net": "a"}) as checkpoints:
        assert checkpoints.latest() == 1


@pytest.mark.parametrize("left", [0.5, 100])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_whole(saved, rng, capfd, caplog, left):
    noise = jnp.asarray(rng.normal(size=(3, 3, 3, 8)), jnp.float32)
    damaged = state_of(4.0)
    damaged.weights["conv1.kernel"] = noise
    with Checkpoints(saved) as checkpoints:
        checkpoints.save(4, damaged, {"epoch": 2})
    for file in (saved / "4" / "state").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            size = int(left * file.stat().st_size) if left < 1 else left
            file.write_bytes(file.read_bytes()[:size])
    with Checkpoints(saved) as checkpoints:
        with pytest.raises(OSError, match=r"'.*4' cannot be read .*remove that folder to"):
            checkpoints.restore(state_of(0.0))
        same(checkpoints.restore(state_of(0.0), step=3)[0], state_of(3.0))
    gc.collect()
    assert capfd.readouterr() == ("", "") and not caplog.records


FULL = """
import resource, sys, jax.numpy as jnp
from rmacjax.finetune.checkpoints import Checkpoints
with Checkpoints(sys.argv[1]) as checkpoints:
    checkpoints.save(1, {"x": jnp.ones(1000)})
    checkpoints.steps()
    # No file may grow beyond this: what a full disk says, on a disk that is not.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    import numpy
    checkpoints.save(2, {"x": jnp.asarray(numpy.random.default_rng(0).random(300_000, "f4"))})
    try:
        checkpoints.steps()
    except OSError as error:
        print(error)
    else:
        print("no error")
"""


def test_a_save_that_fails_is_said_and_leaves_the_one_before(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "run")], capture_output=True, text=True
    )
    assert "could not be written to" in done.stdout, done.stdout + done.stderr
    assert "see whether the disk is full; those before it are whole" in done.stdout
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.steps() == [1]


def test_nothing_is_said_about_what_works(tmp_path, capfd, caplog):
    with caplog.at_level(logging.WARNING), Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(1, {"x": jnp.ones(3)})
        checkpoints.save(2, {"x": jnp.ones(3)}, score=0.1)
        checkpoints.restore({"x": jnp.ones(3)})
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
