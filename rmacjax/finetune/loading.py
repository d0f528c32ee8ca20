"""Batches for training: made ahead in other processes, in order, to be continued anywhere.

Grain keeps the order, the read-ahead and the place in the epoch; the work behind each element is
done by processes without JAX (`rmacjax.finetune.making`), because Grain's own worker processes
import JAX and tie the place in the epoch to their number. So batches are the same for any number of
processes, and a run may go on with another number. At most twice as many steps as there are
processes wait in memory.
"""

import contextlib
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32

from rmacjax.backbones import Network, map_size, minimum_size
from rmacjax.descriptors import REGIONAL, Pool, region_grid
from rmacjax.finetune.batches import Batch, Block
from rmacjax.finetune.interruption import without_ctrl_c
from rmacjax.finetune.making import Made, Order, make, make_here, start
from rmacjax.finetune.sources.plans import Planned
from rmacjax.finetune.sources.protocols import Drawn, Source
from rmacjax.regions import px_to_cells

__all__ = ["Batches", "Loaded", "Loader"]


class Loaded(NamedTuple):
    """One step's batch, and what is said of it.

    Attributes:
        batch: NumPy arrays.
        unreadable: a sentence for each image that could not be read, and for each step before this
            one that was passed over because nothing in it matches any more.
        files: what the images are, or were made from; () where nothing was read.
    """

    batch: Batch
    unreadable: tuple[str, ...]
    files: tuple[str, ...]


class Loader:
    """Makes batches of one source, epoch after epoch, with the same processes.

    Use it in a ``with`` statement, or `close` it: then its processes are gone.

    Example::

        with Loader(source, params.network, workers=2) as loader:
            for epoch in range(10):
                plan = plan_epoch(source, np.random.default_rng([seed, epoch]))
                for loaded in loader.planned(plan):
                    state = step(state, loaded.batch)
    """

    def __init__(
        self,
        source: Source | Drawn,
        network: Network,
        *,
        seed: int = 0,
        pool: Pool = "rmac",
        levels: int = 3,
        with_global: bool = False,
        workers: int = 0,
    ) -> None:
        """Start the processes.

        Args:
            source: from `rmacjax.finetune.sources.open_source`.
            network: whose maps the regions lie on.
            seed: of what is drawn.
            pool: how maps become vectors: pools without regions see the whole map as one.
            levels: of the region grid.
            with_global: whether the whole map is one more region.
            workers: processes that make batches; 0: they are made here, when they are asked for.

        Raises:
            ValueError: the number of processes is negative.
        """
        if workers < 0:
            raise ValueError(f"workers counts processes, so it is 0 or more, not {workers}")
        self.source = source
        self.network = network
        self.seed = seed
        self.pool = pool
        self.levels = levels
        self.with_global = with_global
        self.workers = workers
        self._least = minimum_size(network)
        self._open: list[Batches] = []
        self._pool: ProcessPoolExecutor | None = None
        if workers:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(
                workers,
                context,
                initializer=start,
                initargs=(source, self._least, context.Barrier(workers)),
            )
            with _one_thread_each(), without_ctrl_c():
                for _ in range(workers):  # Processes start when there is something to do.
                    self._pool.submit(int)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def planned(self, plan: Sequence[Planned], *, first: int = 0) -> "Batches":
        """Load the images of a plan, or views of them.

        Args:
            plan: from `rmacjax.finetune.sources.plan_epoch` for this loader's source, or from its
                own `plan` where it makes views.
            first: number of the first step, which decides views.

        Returns:
            A batch of one block for each of its steps; of two where views are made.
        """
        return self._batches([Order(n, self.seed, each) for n, each in enumerate(plan, first)])

    def drawn(self, steps: int, *, first: int = 0) -> "Batches":
        """Draw images for steps.

        Args:
            steps: number of the step before which to end.
            first: number of the first step.

        Returns:
            A batch of two blocks for each step.
        """
        return self._batches([Order(step, self.seed) for step in range(first, steps)])

    def close(self) -> None:
        """End the processes; what they were making is dropped."""
        for batches in self._open:
            batches.close()
        self._open.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _batches(self, orders: list[Order]) -> "Batches":
        for batches in self._open:
            batches.close()
        self._open[:] = [Batches(self, orders)]
        return self._open[0]

    def make(self, order: Order) -> Made:
        """Make a step's pixels, in another process where there is one.

        Args:
            order: which images.

        Raises:
            RuntimeError: a process has ended.
        """
        if self._pool is None:
            return make(self.source, order, self._least)
        try:
            return self._pool.submit(make_here, order).result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a process that loads images has ended: there may be too little memory for "
                f"{self.workers} of them, so try fewer or smaller images, or workers=0 to see why"
            ) from error

    def _regions(self, h: int, w: int) -> Int32[np.ndarray, "r 4"]:
        if self.pool not in REGIONAL:
            return np.asarray([[0, 0, h, w]], np.int32)
        return region_grid(h, w, levels=self.levels, with_global=self.with_global)

    def batch(self, made: Made) -> Batch:
        """Add to a step's pixels what the network's maps have to do with them.

        Args:
            made: from `make`.
        """
        blocks, seen = [], 0
        for images, sizes in made.blocks:
            grids = np.stack(
                [
                    self._regions(*map_size(self.network, height, width))
                    for height, width in sizes.tolist()
                ]
            ).astype(np.int32)
            # What could not be read has no vector, and no part in a running whitening.
            grids[made.labels[seen : seen + len(images)] < 0] = 0
            seen += len(images)
            blocks.append(Block(images, sizes, _shortened(grids)))
        boxes = None
        if made.boxes_px is not None:
            size = made.blocks[-1][0].shape[1:3]
            boxes = px_to_cells(made.boxes_px, map_size(self.network, *size), size)
            boxes = boxes.astype(np.float32)
        return Batch(tuple(blocks), made.labels, made.clusters, boxes, made.overlaps)


class Batches:
    """The batches of an epoch, one after the other.

    Attributes:
        reports: sentences that belong to no batch, as all after them were passed over.
    """

    def __init__(self, loader: Loader, orders: list[Order]) -> None:
        """Prepare to make what is ordered; `Loader` does so."""
        # Late: it takes a second or two, and who loads nothing does without.
        import grain

        self._loader = loader
        self._length = len(orders)
        self.reports: tuple[str, ...] = ()
        self._given = False
        threads = loader.workers + 1 if loader.workers else 0
        ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * loader.workers)
        elements = grain.MapDataset.source(_Orders(loader, orders)).to_iter_dataset(ahead)
        self._iterator: Any = iter(elements)

    def __iter__(self) -> Iterator[Loaded]:
        return self

    def __len__(self) -> int:
        """Number of steps, those included that are passed over because nothing in them matches."""
        return self._length

    def __next__(self) -> Loaded:
        while True:
            try:
                made: Made = next(self._iterator)
            except StopIteration:
                if self.reports and not self._given:
                    raise OSError(
                        f"{self._loader.source.name}: no batch is left in which two images match "
                        f"and two do not; the first reason: {self.reports[0]}"
                    ) from None
                raise
            said = self.reports + made.unreadable
            known = made.labels >= 0
            if len(np.unique(made.labels[known])) == np.sum(known):
                self.reports = (*said, "a batch was passed over: no two of its images match")
                continue
            if len(np.unique(made.clusters[known])) == 1:
                self.reports = (*said, "a batch was passed over: all its images may show the same")
                continue
            self.reports = ()
            self._given = True
            return Loaded(self._loader.batch(made), said, made.files)

    def state(self) -> dict[str, int]:
        """Say where in the epoch we are: what to give to `restore`, as JSON has it."""
        return {key: int(value) for key, value in self._iterator.get_state().items()}

    def restore(self, state: dict[str, int]) -> None:
        """Go on where a run stopped, with the very next batch.

        Args:
            state: from `state`, of batches of the same plan or steps.

        Raises:
            ValueError: it is not of these batches.
        """
        try:
            self._iterator.set_state(dict(state))
            self._given = True  # by the run that was stopped
        except (IndexError, KeyError, TypeError) as error:
            raise ValueError(
                f"a place {state!r} is not one among {self._length} steps: it belongs to another "
                "plan"
            ) from error

    def close(self) -> None:
        """Make nothing further ahead."""
        self._iterator.close()


class _Orders:
    """Orders as Grain's random access takes them: an element is made when it is asked for."""

    def __init__(self, loader: Loader, orders: list[Order]) -> None:
        self._loader = loader
        self._orders = orders

    def __len__(self) -> int:
        return len(self._orders)

    def __getitem__(self, index: int) -> Made:
        return self._loader.make(self._orders[index])


def _shortened(grids: Int32[np.ndarray, "n r 4"]) -> Int32[np.ndarray, "n k 4"]:
    """Leave out most of the empty boxes at the end: in training each one costs as much as a full.

    As many are left as make the number of boxes a multiple of 8, for few compilations.
    """
    full = int((grids[..., 2] > grids[..., 0]).sum(axis=1).max())
    return grids[:, : -(-full // 8) * 8]


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes started here have one thread each for linear algebra."""
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
