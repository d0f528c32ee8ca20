"""Planning: what a training will take, found out before anything long begins.

The compiler is asked, not a formula: the step is compiled for arrays that do not exist, and says
how much memory it needs. One step on zeros gives its time. Nothing is learned.
"""

import os
import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from jaxtyping import PyTree

from rmacjax.pictures import duration

__all__ = ["RunPlan", "abstract", "plan_rows", "plan_run", "size_in_words"]


class RunPlan(NamedTuple):
    """What a training will take.

    Attributes:
        parameters: numbers that are trained.
        arrays: name and shape of each array of a batch, such as ("blocks.0.images",
            "16 x 96 x 96 x 3 uint8").
        images: images per step, over all devices.
        chunk: images that go through the network at once; None: all of a block.
        devices: how many devices share a step.
        memory_bytes: of each device, at most, while a step runs; None where the compiler does not
            say.
        device_bytes: what each device has; None where that is not known.
        step_seconds: how long a step takes; None where it was not measured.
        compile_seconds: how long it took to compile, or to find what was compiled before.
        shapes: padded sizes of batches that are known to occur, each of which is compiled for.
        total_steps: steps of the whole training.
        steps_per_epoch: of an epoch; None where there are none.
        checkpoint_bytes: of one checkpoint, at most: what is written is compressed.
        checkpoints: how many are there at a time, with the one that is being written.
        free_bytes: what the disk they go to has left; None where no folder was named.
    """

    parameters: int
    arrays: tuple[tuple[str, str], ...]
    images: int
    chunk: int | None
    devices: int
    memory_bytes: int | None
    device_bytes: int | None
    step_seconds: float | None
    compile_seconds: float
    shapes: int
    total_steps: int
    steps_per_epoch: int | None
    checkpoint_bytes: int
    checkpoints: int
    free_bytes: int | None

    @property
    def fits(self) -> bool:
        """Whether nothing is known to be too large for the devices or the disk."""
        return not self._too_much(self.memory_bytes, self.device_bytes) and not self._too_much(
            self.disk_bytes, self.free_bytes
        )

    @property
    def disk_bytes(self) -> int:
        """What all checkpoints take that are there at a time."""
        return self.checkpoint_bytes * self.checkpoints

    @property
    def run_seconds(self) -> float | None:
        """How long all steps take, without loading, validating and saving."""
        if self.step_seconds is None:
            return None
        return self.shapes * self.compile_seconds + self.total_steps * self.step_seconds

    @staticmethod
    def _too_much(needed: int | None, there: int | None) -> bool:
        return needed is not None and there is not None and needed > there


def plan_run(
    step: Callable[..., Any],
    state: PyTree,
    batch: PyTree,
    *,
    options: Mapping[str, object] | None = None,
    trained: PyTree,
    images: int,
    total_steps: int,
    steps_per_epoch: int | None = None,
    shapes: int = 1,
    chunk: int | None = None,
    checkpoints: int = 4,
    folder: str | os.PathLike[str] | None = None,
    timed: bool = True,
) -> RunPlan:
    """Find out what a training will take.

    Args:
        step: a `jax.jit` function of (state, batch) and options; it may donate the state.
        state: `jax.ShapeDtypeStruct`s, see `abstract`; with shardings where there are several
            devices.
        batch: the same, of the largest padded size that is known to occur.
        options: the step's static arguments, by name.
        trained: the part of the state that is trained.
        images: images per step.
        total_steps: steps of the whole training.
        steps_per_epoch: of an epoch, where there are epochs.
        shapes: padded sizes of batches that are known to occur.
        chunk: images that go through the network at once, for people to see.
        checkpoints: how many are there at a time, with the one that is being written.
        folder: where they will be, for the disk's free space; it need not exist.
        timed: whether to run the step, twice, on zeros. What would not fit is not run.

    Raises:
        ValueError: for fewer than one step, image or checkpoint.
    """
    for name, number in (
        ("total_steps", total_steps),
        ("images", images),
        ("checkpoints", checkpoints),
    ):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, not {number}")
    start = time.perf_counter()
    jitted = cast(Any, step)
    compiled = jitted.lower(state, batch, **(options or {})).compile()
    seconds = time.perf_counter() - start
    used = _devices((state, batch))
    plan = RunPlan(
        parameters=sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(trained)),
        arrays=_arrays(batch),
        images=images,
        chunk=chunk,
        devices=len(used),
        memory_bytes=_memory(compiled),
        device_bytes=_device_memory(used),
        step_seconds=None,
        compile_seconds=seconds,
        shapes=shapes,
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        checkpoint_bytes=sum(_bytes(leaf) for leaf in jax.tree.leaves(state)),
        checkpoints=checkpoints,
        free_bytes=None if folder is None else _free(folder),
    )
    if timed and not plan._too_much(plan.memory_bytes, plan.device_bytes):
        return plan._replace(step_seconds=_time(compiled, state, batch))
    return plan


def plan_rows(plan: RunPlan) -> list[tuple[str, str]]:
    """A plan as a table for people: what, and how much."""
    shared = f" on {plan.devices} devices" if plan.devices > 1 else ""
    at_once = "" if plan.chunk is None else f", {plan.chunk} at once"
    each = " per device" if plan.devices > 1 else ""
    memory = "the compiler does not say"
    if plan.memory_bytes is not None:
        memory = size_in_words(plan.memory_bytes) + each
        if plan.device_bytes is not None:
            memory += f", of {size_in_words(plan.device_bytes)}"
            if plan.memory_bytes > plan.device_bytes:
                memory += ": too much; take smaller chunks or images, or fewer of them"
    epochs = "" if plan.steps_per_epoch is None else f", {plan.steps_per_epoch:,} per epoch"
    sizes = f", for each of {plan.shapes} sizes of batches seen" if plan.shapes > 1 else ""
    step, run = "not measured", "not measured"
    if plan.step_seconds is not None and plan.run_seconds is not None:
        rate = plan.images / plan.step_seconds
        step = f"{duration(plan.step_seconds)} ({rate:,.1f} images per second)"
        run = f"{duration(plan.run_seconds)}, beside loading, validating and saving"
    disk = (
        f"up to {size_in_words(plan.checkpoint_bytes)} each, {size_in_words(plan.disk_bytes)} for "
        f"{plan.checkpoints}"
    )
    if plan.free_bytes is not None:
        disk += f", of {size_in_words(plan.free_bytes)} free"
        if plan.disk_bytes > plan.free_bytes:
            disk += ": too much; name a folder on another disk"
    return [
        ("parameters", f"{plan.parameters:,}"),
        *plan.arrays,
        ("images per step", f"{plan.images:,}{at_once}{shared}"),
        ("memory", memory),
        ("compiling", duration(plan.compile_seconds) + sizes),
        ("one step", step),
        ("steps", f"{plan.total_steps:,}{epochs}"),
        ("all steps", run),
        ("checkpoints", disk),
    ]


def abstract(arrays: PyTree) -> PyTree:
    """Shapes, dtypes and shardings of a pytree's arrays, without the arrays."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None)
        ),
        arrays,
    )


def size_in_words(number: int | float) -> str:
    """Bytes as people say them.

    >>> size_in_words(512), size_in_words(61_000_000), size_in_words(17.2e9)
    ('512 bytes', '61.0 MB', '17.2 GB')
    """
    for unit, least in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= 0.99995 * least:
            return f"{number / least:.1f} {unit}"
    return f"{number:.0f} bytes"


def _arrays(batch: PyTree) -> tuple[tuple[str, str], ...]:
    named = jax.tree_util.tree_leaves_with_path(batch)
    return tuple(
        (
            jax.tree_util.keystr(path, simple=True, separator="."),
            f"{' x '.join(map(str, leaf.shape)) or 'one'} {np.dtype(leaf.dtype).name}",
        )
        for path, leaf in named
    )


def _devices(arrays: PyTree) -> list[jax.Device]:
    """The devices that arrays will lie on; the default one where nothing is said."""
    found: set[jax.Device] = set()
    for leaf in jax.tree.leaves(arrays):
        if getattr(leaf, "sharding", None) is not None:
            found |= leaf.sharding.device_set
    return sorted(found, key=lambda device: device.id) or jax.devices()[:1]


def _memory(compiled: Any) -> int | None:
    """Arguments, results and everything in between; what is donated counts once."""
    stats = compiled.memory_analysis()
    if stats is None:
        return None
    return int(
        stats.argument_size_in_bytes
        + stats.output_size_in_bytes
        + stats.temp_size_in_bytes
        - stats.alias_size_in_bytes
    )


def _device_memory(devices: list[jax.Device]) -> int | None:
    stats = devices[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    if devices[0].platform == "cpu" and hasattr(os, "sysconf"):
        # What is called a device here shares the machine's memory with the others.
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // len(devices)
    return None


def _bytes(leaf: Any) -> int:
    return int(np.prod(leaf.shape)) * int(np.dtype(leaf.dtype).itemsize)


def _free(folder: str | os.PathLike[str]) -> int:
    place = os.path.abspath(folder)
    while not os.path.exists(place):
        place = os.path.dirname(place)
    return shutil.disk_usage(place).free


def _time(compiled: Any, state: PyTree, batch: PyTree) -> float:
    """Seconds of one step on zeros; an earlier one wakes the device up."""
    zeros = _zeros(batch)
    jax.block_until_ready(compiled(_zeros(state), zeros))
    begun = _zeros(state)
    jax.block_until_ready((begun, zeros))
    start = time.perf_counter()
    jax.block_until_ready(compiled(begun, zeros))
    return time.perf_counter() - start


def _zeros(arrays: PyTree) -> PyTree:
    return jax.tree.map(
        lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding), arrays
    )
