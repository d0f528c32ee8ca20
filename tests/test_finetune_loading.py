"""Batches made ahead: the same for any number of processes, continued anywhere, nothing left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from dataset_layouts import photo

from rmacjax.backbones import TORCHVISION_CONVENTION, Network, map_size
from rmacjax.descriptors import region_grid
from rmacjax.finetune.interruption import without_ctrl_c
from rmacjax.finetune.loading import Loader
from rmacjax.finetune.sources import (
    FolderOfFolders,
    GeneratedScenes,
    PhotoViews,
    Planned,
    Stage,
    plan_epoch,
)
from rmacjax.preprocessing import load_image
from rmacjax.regions import px_to_cells

NETWORK = Network("alexnet", False, TORCHVISION_CONVENTION)
SIZES = [(70, 90), (130, 80), (64, 200), (90, 90)]

# Grain's own: a thread pool that is closed late, and its own notices.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for i in range(4):
        for j in range(2):
            photo(root / f"object{i}" / f"{j}.jpg", 10 * i + j, *SIZES[(i + j) % 4])
    return root


@pytest.fixture(scope="module")
def source(folder):
    return FolderOfFolders(folder, long_side=160)


def plan_of(source, steps=6):
    generator = np.random.default_rng(3)
    plan = []
    while len(plan) < steps:
        plan += plan_epoch(source, generator, objects=2, images=2)
    return plan[:steps]


def same(one, other):
    assert (one.unreadable, one.files) == (other.unreadable, other.files)
    for a, b in zip(one.batch.blocks, other.batch.blocks, strict=True):
        for left, right in zip(a, b, strict=True):
            np.testing.assert_array_equal(left, right)
    for left, right in zip(one.batch[1:], other.batch[1:], strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.fixture(scope="module")
def inline(source):
    with Loader(source, NETWORK) as loader:
        return list(loader.planned(plan_of(source)))


def test_views_of_a_plan_are_those_of_its_photos_and_steps(folder):
    """In another process, too."""
    source = PhotoViews(folder, n=2, size=64)
    hard = np.asarray([[(i + 3) % 8] for i in range(8)])
    plan = source.plan(np.random.default_rng(0), hard)
    with Loader(source, NETWORK, seed=4) as here, Loader(source, NETWORK, seed=4, workers=1) as far:
        made = list(here.planned(plan, first=5))
        for one, other in zip(made, far.planned(plan, first=5), strict=True):
            same(one, other)
    for step, (planned, loaded) in enumerate(zip(plan, made, strict=True), 5):
        wanted = source.draw(4, step, planned.indices)
        for block, images in zip(loaded.batch.blocks, wanted[:2], strict=True):
            np.testing.assert_array_equal(block.images, images)
        assert loaded.batch.labels.tolist() == 2 * list(planned.indices)


def test_a_batch_holds_the_photos_of_its_plan_padded_to_the_ladder(source, inline):
    plan = plan_of(source)
    assert len(inline) == len(plan)
    for planned, loaded in zip(plan, inline, strict=True):
        (block,) = loaded.batch.blocks
        assert block.images.dtype == np.uint8 and block.images.shape[0] == 4
        assert {*block.images.shape[1:3]} <= {64, 128, 192}
        assert loaded.files == tuple(source.name_of(i) for i in planned.indices)
        assert loaded.batch.labels.tolist() == list(planned.labels)
        assert loaded.batch.clusters.tolist() == list(planned.clusters)
        assert loaded.batch.boxes is None and not loaded.unreadable
        for row, path in enumerate(loaded.files):
            pixels = load_image(path, 160).pixels
            h, w = block.sizes[row]
            assert pixels.shape[:2] == (h, w)
            np.testing.assert_array_equal(block.images[row, :h, :w], pixels)
            assert not block.images[row, h:].any() and not block.images[row, :, w:].any()
            grid = region_grid(*map_size(NETWORK, int(h), int(w)), levels=3)
            np.testing.assert_array_equal(block.regions[row], grid)


@pytest.fixture(scope="module")
def two(source):
    with Loader(source, NETWORK, workers=2) as loader:
        yield loader


def test_two_processes_make_what_none_makes(source, inline, two):
    for one, other in zip(inline, two.planned(plan_of(source)), strict=True):
        same(one, other)


def test_a_run_goes_on_with_the_very_next_batch_with_any_number_of_processes(source, inline, two):
    batches = two.planned(plan_of(source))
    assert [len(next(batches).files) for _ in range(2)] == [4, 4]
    state = batches.state()
    for loader in (two, Loader(source, NETWORK)):
        again = loader.planned(plan_of(source))
        again.restore(state)
        rest = list(again)
        assert len(rest) == len(inline) - 2
        for one, other in zip(inline[2:], rest, strict=True):
            same(one, other)
    with pytest.raises(ValueError, match="belongs to another plan"):
        two.planned(plan_of(source)[:1]).restore(state)


def test_processes_that_make_batches_know_no_jax(source, two):
    assert next(two.planned(plan_of(source))).files
    heavy = "[m for m in ('jax', 'jaxlib', 'flax', 'grain', 'optax') if m in sys.modules]"
    for _ in range(4):
        found = two._pool.submit(eval, f"[sys := __import__('sys'), {heavy}][1]").result()
        assert found == []
    assert two._pool.submit(os.getpid).result() != os.getpid()


def test_at_most_twice_as_many_steps_as_processes_wait(source, two):
    asked = []
    make = two.make
    plan = plan_of(source, 12) * 3
    batches = two.planned(plan)
    try:
        two.make = lambda order: asked.append(order.step) or make(order)
        next(batches)
        time.sleep(0.3)
    finally:
        two.make = make
    assert 1 <= len(asked) <= 1 + 2 * 2
    batches.close()


def test_drawn_batches_have_two_blocks_and_boxes_in_cells():
    source = GeneratedScenes((Stage(1, "views", 64, 2), Stage(1, "searches", 144, 2)))
    with Loader(source, NETWORK, seed=4) as loader:
        views, searches = loader.drawn(2)
    assert views.batch.boxes is None
    np.testing.assert_array_equal(views.batch.labels, [0, 1, 0, 1])
    drawing = source.draw(4, 1)
    first, second = searches.batch.blocks
    np.testing.assert_array_equal(first.images, drawing.first)
    np.testing.assert_array_equal(second.images, drawing.second)
    assert first.sizes.tolist() == [list(drawing.first.shape[1:3])] * 2
    cells = px_to_cells(drawing.boxes_px, map_size(NETWORK, 144, 144), (144, 144))
    np.testing.assert_array_equal(searches.batch.boxes, cells)
    assert searches.batch.boxes.dtype == searches.batch.overlaps.dtype == np.float32
    np.testing.assert_array_equal(searches.batch.labels, [0, 1, 0, 1])


def test_what_cannot_be_read_takes_no_part_and_what_nothing_is_left_of_is_passed_over(tmp_path):
    for i in range(3):
        for j in range(2):
            photo(tmp_path / f"object{i}" / f"{j}.jpg", 10 * i + j, 70, 80)
    (tmp_path / "object0" / "0.jpg").write_bytes(b"\xff\xd8\xff no photo")
    photo(tmp_path / "object1" / "1.jpg", 1, 20, 30)  # too small for the network
    source = FolderOfFolders(tmp_path)
    pairs = [Planned((0, 1), (0, 0), (0, 0)), Planned((2, 3, 4), (1, 1, 2), (1, 1, 2))]
    good = Planned((1, 4, 5, 0), (0, 2, 2, 0), (0, 2, 2, 0))
    with Loader(source, NETWORK) as loader:
        (loaded,) = loader.planned([*pairs, good])
        assert loaded.batch.labels.tolist() == [0, 2, 2, -1]
        assert not loaded.batch.blocks[0].images[3].any()
        full = loaded.batch.blocks[0].regions.any(axis=(1, 2))
        assert full.tolist() == [True, True, True, False]  # no vector, so no part in moments
        said = " / ".join(loaded.unreadable)
        assert said.count("0.jpg") == 2 and "has 20 x 30 pixels" in said
        assert said.count("a batch was passed over") == 2
        with pytest.raises(OSError, match=r"no batch is left in which two images match.*0\.jpg"):
            list(loader.planned(pairs))
        same = [Planned((1, 4, 5), (0, 2, 2), (7, 7, 7))]
        with pytest.raises(OSError, match=r"and two do not.*all its images may show the same"):
            list(loader.planned(same))
        last = loader.planned([good, *pairs])
        assert len(list(last)) == 1 and len(last.reports) == 4


def test_a_number_of_processes_below_zero_is_refused(source):
    with pytest.raises(ValueError, match="workers counts processes"):
        Loader(source, NETWORK, workers=-1)


class Slow:
    """Takes its time in each process that it comes to."""

    def __init__(self) -> None:
        self.seconds = 3.0

    def __setstate__(self, state: dict[str, float]) -> None:
        time.sleep(state["seconds"])
        self.__dict__.update(state)


def test_all_processes_start_at_once_however_large_the_source(folder):
    """Where one is ready before the next has read its source, that one is started all the same."""
    source = FolderOfFolders(folder)
    source.slow, source.more_than_a_pipe_holds = Slow(), bytes(300_000)
    with Loader(source, NETWORK, workers=3) as loader:
        assert len(loader._pool._processes) == 3


def test_a_process_that_is_killed_is_said(source):
    with Loader(source, NETWORK, workers=1) as loader:
        os.kill(loader._pool.submit(os.getpid).result(), signal.SIGKILL)
        with pytest.raises(RuntimeError, match="a process that loads images has ended"):
            list(loader.planned(plan_of(source)))


PROGRAM = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
if __name__ == "__main__":
    from rmacjax.backbones import TORCHVISION_CONVENTION, Network
    from rmacjax.finetune.loading import Loader
    from rmacjax.finetune.sources import PhotoViews
    source = PhotoViews(sys.argv[1], n=2, size=64)
    network = Network("alexnet", False, TORCHVISION_CONVENTION)
    try:
        with Loader(source, network, workers=2) as loader:
            for number, _ in enumerate(loader.drawn(10**6)):
                if number == 3:
                    print(*loader._pool._processes, flush=True)
    except KeyboardInterrupt:
        print("stopped", flush=True)
"""


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="Windows has no masks")
def test_processes_are_deaf_to_ctrl_c_from_their_first_moment():
    """Those that start them are not: what was pressed meanwhile comes afterwards."""
    asked = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    with pytest.raises(KeyboardInterrupt), without_ctrl_c():
        os.kill(os.getpid(), signal.SIGINT)
        inside = subprocess.check_output([sys.executable, "-c", asked], text=True)
    outside = subprocess.check_output([sys.executable, "-c", asked], text=True)
    assert (inside, outside) == ("True\n", "False\n")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_process_is_left_behind(tmp_path, folder, how):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    run = subprocess.Popen(
        [sys.executable, str(program), str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    pids = [int(pid) for pid in run.stdout.readline().split()]
    assert len(pids) == 2
    if how == signal.SIGINT:
        os.killpg(run.pid, how)
    else:
        run.kill()
    out, error = run.communicate(timeout=60)
    assert out == ("stopped\n" if how == signal.SIGINT else "")
    assert "Traceback" not in error
    ends = time.monotonic() + 20
    while not all(map(gone, pids)) and time.monotonic() < ends:
        time.sleep(0.05)
    assert all(map(gone, pids))
