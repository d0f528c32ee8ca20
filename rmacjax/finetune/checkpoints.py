"""Checkpoints: where a training was, so that it goes on there whatever happened to it.

Each checkpoint is a folder named by its step. It is written beside its place by a background thread
and renamed when complete, so a training that is killed while it saves finds the one before. With
the arrays goes a document of everything else (where the pipeline of photos was, what was mined,
options), and a score where one was measured: the best and the last are kept.

This is the only module that knows Orbax.
"""

import gc
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from rmacjax.finetune.extras import from_json, to_json
from rmacjax.finetune.interruption import undisturbed

__all__ = ["Checkpoints"]

NAMED = 5
"""So many differences are listed."""

ASIDE = ".before"
"""What is added to the name of a checkpoint while it is saved again."""

IN_USE = "in-use"
"""The file that a training holds while it writes to a folder."""


class Checkpoints:
    """The checkpoints of one training.

    Attributes:
        folder: where they are, an absolute path.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        made_with: Mapping[str, object] | None = None,
        keep_best: int = 1,
        keep_last: int = 2,
    ) -> None:
        """Open a folder of checkpoints, or begin one.

        What an interrupted save left is removed. From here on Orbax reports errors only.

        Args:
            folder: is made where it does not exist.
            made_with: whatever must not change between two parts of one training, such as the
                network and the options that decide what is learned: JSON's types and tuples, by
                name. None compares nothing, and what is saved then can only be opened so.
            keep_best: how many checkpoints with the highest scores are kept.
            keep_last: how many of the latest are kept, at least 1.

        Raises:
            ValueError: where the folder's checkpoints were made with something else, with what
                differs; or a number of checkpoints is out of range.
            OSError: where the folder cannot be used, what is in it is damaged, or another training
                is using it.
        """
        if keep_best < 0 or keep_last < 1:
            raise ValueError(
                "keep_best must be at least 0 and keep_last at least 1, not "
                f"{keep_best} and {keep_last}: what was saved last is what a training goes on from"
            )
        # What goes wrong is raised; Orbax also prints it, as a traceback.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self.folder = os.path.abspath(folder)
        self._made_with = None if made_with is None else json.loads(json.dumps(made_with))
        self._lock = _lock(self.folder)
        best = BestN(get_metric_fn=_rank, n=keep_best, keep_checkpoints_without_metrics=False)
        try:
            _take_back(self.folder)
            self._check_scores()
            self._manager = ocp.CheckpointManager(
                self.folder,
                item_handlers={
                    "state": ocp.StandardCheckpointHandler(),
                    "extras": ocp.JsonCheckpointHandler(),
                },
                options=ocp.CheckpointManagerOptions(
                    best_fn=_rank,
                    preservation_policy=AnyPreservationPolicy([LatestN(keep_last), best]),
                    cleanup_tmp_directories=True,
                ),
            )
        except (OSError, MemoryError, KeyboardInterrupt):
            self._lock.close()
            raise
        except Exception as error:
            self._lock.close()
            raise OSError(
                f"the checkpoints in {self.folder!r} cannot be read ({_first_line(error)}): if one "
                "is damaged, remove that one's folder"
            ) from error
        try:
            self._check_made_with()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def steps(self) -> list[int]:
        """The steps that there are checkpoints of, ascending; complete ones only."""
        self.wait()
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        """The step of the last checkpoint; None where there is none."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """The step with the highest score, of equal ones the first; None where none has one."""
        ranked = {step: self._metrics(step) for step in self.steps()}
        scored = [step for step, metrics in ranked.items() if metrics]
        return max(scored, key=lambda step: _rank(ranked[step]), default=None)

    def score(self, step: int) -> float | None:
        """The score that a checkpoint was saved with; None where it had none."""
        metrics = self._metrics(self._check_step(step))
        return float(metrics["score"]) if metrics else None

    def _metrics(self, step: int) -> Any:
        with self._reading(os.path.join(self.folder, str(step))):
            return self._manager.metrics(step)

    def save(
        self,
        step: int,
        state: PyTree,
        extras: Mapping[str, object] | None = None,
        *,
        score: float | None = None,
    ) -> None:
        """Save where a training is; what is superfluous then is removed.

        The arrays are copied before this returns and written in the background, so they may be
        donated at once. A save that is still being written is waited for.

        Args:
            step: above those that are there.
            state: pytree of JAX and NumPy arrays of any sharding.
            extras: everything else: JSON's types with names as keys, and at any depth bytes and
                NumPy arrays.
            score: how good this state is, the higher the better; None or NaN: not measured.

        Raises:
            ValueError: for a step that is not above those that are there.
            TypeError: where a leaf of the state is no array, or the extras hold something else.
            OSError: where this or the save before could not be written.
        """
        last = self.latest()
        if last is not None and step <= last:
            raise ValueError(
                f"{self.folder!r} holds a checkpoint of step {last}, so step {step} cannot be "
                "saved after it: go on from there"
            )
        arrays = {name: leaf for name, leaf in _named(state).items() if leaf.size}
        metrics = None
        if score is not None and not np.isnan(score):
            metrics = {"score": float(score), "step": step}
        document = {"extras": to_json(dict(extras or {}))}
        with self._writing(step):
            _first_error_only(
                lambda: self._manager.save(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardSave(arrays),
                        extras=ocp.args.JsonSave(document),
                    ),
                    metrics=metrics,
                    custom_metadata={"made_with": self._made_with},
                    force=True,
                )
            )

    def save_again(
        self, step: int, state: PyTree, extras: Mapping[str, object], *, score: float
    ) -> None:
        """Save the last step again, measured now; what was there goes when the new one is whole.

        For the arguments see `save`.

        Raises:
            FileNotFoundError: where there is no such checkpoint.
            OSError: where it could not be written.
        """
        place = os.path.join(self.folder, str(self._check_step(step)))
        with undisturbed():
            with self._writing(step):
                os.rename(place, place + ASIDE)
                self._manager.reload()
            self.save(step, state, extras, score=score)
            self.wait()
            shutil.rmtree(place + ASIDE)

    def restore(self, like: PyTree, *, step: int | None = None) -> tuple[PyTree, dict[str, Any]]:
        """Read a checkpoint back.

        Args:
            like: a pytree of the same structure, shapes and dtypes: arrays, or
                `jax.ShapeDtypeStruct`s. What is an array of JAX's here becomes one, laid out over
                devices in the same way; one that is bound to no device becomes such a one.
            step: which one; None: the last.

        Returns:
            The state, and the extras with their bytes and arrays.

        Raises:
            ValueError: where the checkpoint holds other arrays, with what differs.
            FileNotFoundError: where there is no such checkpoint.
            OSError: where its files are damaged.
        """
        step = self._check_step(self.latest() if step is None else step)
        wanted = _named(like)
        place = os.path.join(self.folder, str(step))
        with self._reading(place):
            stored = _first_error_only(lambda: self._manager.item_metadata(step)["state"])
            there = {} if stored is None else {name: _kind(a) for name, a in stored.items()}
        here = {name: _kind(leaf) for name, leaf in wanted.items() if leaf.size}
        self._refuse(
            _differences(there, here),
            f"the checkpoint {place!r} is of another network or optimizer",
        )
        targets = {name: _target(leaf) for name, leaf in wanted.items() if leaf.size}
        with self._reading(place):
            asked = ocp.args.Composite(
                state=ocp.args.StandardRestore(targets), extras=ocp.args.JsonRestore()
            )
            read = _first_error_only(lambda: self._manager.restore(step, args=asked))
            extras = from_json(read["extras"]["extras"])
        leaves = [
            _placed(read["state"][name] if leaf.size else np.zeros(leaf.shape, leaf.dtype), leaf)
            for name, leaf in wanted.items()
        ]
        return jax.tree.unflatten(jax.tree.structure(like), leaves), extras

    def wait(self) -> None:
        """Wait until what was saved is written.

        Raises:
            OSError: where it could not be written.
        """
        with self._writing(None):
            _first_error_only(self._manager.wait_until_finished)

    def close(self) -> None:
        """Wait until all is written, and let go of the folder.

        Raises:
            OSError: where the last save could not be written.
        """
        try:
            self.wait()
        finally:
            with undisturbed():
                try:
                    self._manager.close()
                finally:
                    self._lock.close()

    @contextmanager
    def _writing(self, step: int | None) -> Iterator[None]:
        what = "a checkpoint" if step is None else f"the checkpoint of step {step}"
        with _told(
            f"{what} could not be written to {self.folder!r}",
            "see whether the disk is full; those before it are whole",
        ):
            yield

    @contextmanager
    def _reading(self, place: str) -> Iterator[None]:
        with _told(
            f"the checkpoint {place!r} cannot be read",
            "if it is damaged, remove that folder to go on from the one before",
        ):
            yield

    def _check_step(self, step: int | None) -> int:
        steps = self.steps()
        if step is None or step not in steps:
            known = ", ".join(map(str, steps)) or "none"
            which = "no checkpoint" if step is None else f"no checkpoint of step {step}"
            raise FileNotFoundError(f"there is {which} in {self.folder!r}; there is {known}")
        return step

    def _check_scores(self) -> None:
        """Read every score before Orbax does, which does not say where it fails."""
        for step in filter(str.isdecimal, os.listdir(self.folder)):
            place = os.path.join(self.folder, step)
            file = os.path.join(place, "metrics", "metrics")
            if os.path.isfile(file):
                with self._reading(place), open(file, encoding="utf-8") as text:
                    score, last = _rank(json.load(text))
                    if not isinstance(score, float) or np.isnan(score) or not isinstance(last, int):
                        raise ValueError("its score is no number")

    def _check_made_with(self) -> None:
        step = self.latest()
        if step is None or self._made_with is None:
            return
        with self._reading(os.path.join(self.folder, str(step))):
            known = self._manager.metadata(step).custom_metadata or {}
            before = known.get("made_with")
            if not isinstance(before, dict):
                raise ValueError("what it was made with is lost")
        self._refuse(
            _differences(_flat(before), _flat(self._made_with)),
            f"the checkpoints in {self.folder!r} were made with other options",
        )

    def _refuse(self, differences: list[str], sentence: str) -> None:
        if differences:
            listed = "; ".join(differences[:NAMED])
            more = len(differences) - NAMED
            rest = f"; and {more} more" if more > 0 else ""
            raise ValueError(
                f"{sentence} ({listed}{rest}): continue with what it was begun with, or name "
                "another folder"
            )


@contextmanager
def _told(what: str, advice: str) -> Iterator[None]:
    """Let Orbax work undisturbed; whatever it raises, of any kind, becomes one sentence."""
    try:
        with undisturbed():
            yield
    except MemoryError:  # no matter of files
        raise
    except Exception as error:
        raise OSError(f"{what} ({_first_line(error)}): {advice}") from error


def _first_error_only(work: Callable[[], Any]) -> Any:
    """Read or write arrays, and where that fails let the first error speak for all.

    Orbax takes all arrays at once and gives up at the first that fails. What becomes of the others
    would be printed to stderr, a traceback for each, when nobody waits for them any more.
    """
    hook, log = sys.unraisablehook, logging.getLogger("asyncio")
    was = log.disabled
    sys.unraisablehook, log.disabled = lambda _: None, True
    try:
        try:
            return work()
        except MemoryError:
            raise
        except Exception as error:
            sentence = _first_line(error)
        time.sleep(0.1)
        gc.collect()
    finally:
        sys.unraisablehook, log.disabled = hook, was
    raise OSError(sentence)


def _rank(metrics: Mapping[str, float]) -> Any:
    """What checkpoints are ordered by: of equal scores the first is the better."""
    return metrics["score"], -metrics["step"]


def _lock(folder: str) -> IO[str]:
    """Take a folder for this training alone, for as long as the file stays open."""
    try:
        os.makedirs(folder, exist_ok=True)
        file = open(os.path.join(folder, IN_USE), "w", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise OSError(
            f"checkpoints cannot be kept in {folder!r} ({error.strerror}): name another folder"
        ) from error
    try:
        import fcntl
    except ImportError:  # not on Windows
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise OSError(
            f"another training is at work in {folder!r}: wait for it, or name another folder"
        ) from error
    return file


def _take_back(folder: str) -> None:
    """Bring what was being saved again to its place; where it was saved, remove what was before."""
    for name in os.listdir(folder):
        step = name.removesuffix(ASIDE)
        if step != name and step.isdecimal():
            aside, place = os.path.join(folder, name), os.path.join(folder, step)
            shutil.rmtree(aside) if os.path.isdir(place) else os.rename(aside, place)


def _named(state: PyTree) -> dict[str, Any]:
    """The arrays of a pytree by name, in its order."""
    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "state"
        if not isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
            raise TypeError(
                f"{name} of the state is {type(leaf).__name__}, not an array: make it one, or put "
                "it into the extras"
            )
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise TypeError(f"{name} of the state is a random key: keep its jax.random.key_data")
        if name in named:
            raise ValueError(f"two arrays of the state are called {name}: rename one")
        named[name] = leaf
    return named


def _kind(array: Any) -> str:
    """What must agree of an array: dtype and shape."""
    return f"{np.dtype(array.dtype).name}[{', '.join(map(str, array.shape))}]"


def _target(leaf: Any) -> Any:
    """Where Orbax is to put an array."""
    if isinstance(leaf, np.ndarray):
        return leaf
    here = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)


def _placed(array: Any, like: Any) -> Any:
    """An array that was read, bound to devices only if the one that is wanted is.

    Arrays without elements are not stored, nothing is lost by making them anew.
    """
    if isinstance(like, np.ndarray):
        return array
    bound = like.committed if isinstance(like, jax.Array) else like.sharding is not None
    if not bound:
        return jnp.array(np.asarray(array))
    return array if isinstance(array, jax.Array) else jax.device_put(array, like.sharding)


def _differences(there: Mapping[str, object], here: Mapping[str, object]) -> list[str]:
    return [
        f"{name} is {_shown(there, name)} there and {_shown(here, name)} here"
        for name in {**there, **here}
        if (name in there) != (name in here) or there.get(name) != here.get(name)
    ]


def _shown(values: Mapping[str, object], name: str) -> str:
    if name not in values:
        return "missing"
    value = values[name]
    return value if isinstance(value, str) else json.dumps(value)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """Nested options by their names, joined by dots."""
    flat: dict[str, object] = {}
    for name, value in values.items():
        flat |= (
            _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
    return flat


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
