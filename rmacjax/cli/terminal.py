"""What people see: progress, tables, sentences; and what programs read: one JSON document."""

import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.constructors import PrimitiveConstructorSpec

LINE_SECONDS = 10.0
"""Where stderr is no terminal, progress is one line this often."""

COMPILED_SECONDS = 0.5
"""Programs that took longer to compile are kept for the next command."""

LISTED = 20
"""So many skipped photos are named at the end."""


def _whole_numbers(words: list[str]) -> tuple[int, ...]:
    for word in words:
        if not word.lstrip("-").isdecimal():
            raise ValueError(f"{word!r} is not a whole number of pixels")
    return tuple(int(word) for word in words)


def _option(metavar: str) -> Any:
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


Flag = Annotated[bool, tyro.conf.arg(help_behavior_hint="")]
JsonFile = Annotated[str | None, _option("FILE")]
OutFile = Annotated[str | None, _option("FILE")]
FirstStageName = Annotated[
    Literal["descriptor", "regions", "diffusion"],
    tyro.conf.arg(metavar="descriptor|regions|diffusion"),
]
LeastScore = Annotated[float | Literal["auto"] | None, _option("SCORE|auto")]
ExpandCount = Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: 5)")]
RerankDepth = Annotated[int | Literal["all"], tyro.conf.arg(metavar="N|all")]
PeoplesBox = Annotated[
    tuple[int, int, int, int] | None,
    PrimitiveConstructorSpec(
        nargs=4,
        metavar="LEFT TOP RIGHT BOTTOM",
        instance_from_str=_whole_numbers,
        is_instance=lambda value: value is None or isinstance(value, tuple),
        str_from_instance=lambda value: [] if value is None else [str(side) for side in value],
    ),
    tyro.conf.arg(help_behavior_hint=""),
]


def box_px(box: Sequence[int] | None) -> tuple[int, int, int, int] | None:
    """A box as people give it (left, top, right, bottom), in the library's order."""
    if box is None:
        return None
    left, top, right, bottom = box
    if right <= left or bottom <= top:
        raise ValueError(
            f"--box {left} {top} {right} {bottom} is empty or upside down: give LEFT TOP RIGHT "
            "BOTTOM in pixels, counted from the upper left corner"
        )
    return top, left, bottom, right


def prepare(*modules: str) -> None:
    """Set JAX up for a short-lived program: what was compiled once is kept for the next command.

    JAX is imported, and modules that are named, without being interrupted: half imported, some of
    the libraries crash.

    It is kept in this user's cache folder, or where JAX_COMPILATION_CACHE_DIR says; with
    JAX_ENABLE_COMPILATION_CACHE=0 nothing is kept. Where nothing can be written all is compiled
    again, without a word.
    """
    from rmacjax.finetune.interruption import undisturbed

    with undisturbed():
        import jax

        for module in modules:
            import_module(module)
    import platformdirs

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        folder = os.path.join(platformdirs.user_cache_dir("rmacjax", appauthor=False), "compiled")
        if _can_keep(folder):
            jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", COMPILED_SECONDS)
    # A full disk, or a file that was damaged: the program is compiled again, nobody need know.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")


def _can_keep(folder: str) -> bool:
    """Make a cache folder. One without a home ("~" has no meaning then) or rights is none."""
    if not os.path.isabs(folder):
        return False
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def say(words: str) -> None:
    """One sentence to stderr."""
    from rmacjax.pictures import printable

    lines = [printable(line) for line in words.split("\n")]
    print("\n".join(lines), file=sys.stderr, flush=True)


def tell(words: str) -> None:
    """One line of what a command reports, to stdout."""
    from rmacjax.pictures import printable

    print(printable(words), flush=True)


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr with photos per second and the time left; lines where there is no terminal.

    Args:
        what: what is counted, such as "photos".

    Yields:
        A function of (done, total).
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    rate = _Rate()
    if not console.is_terminal:
        yield _lines(what, rate)
        return
    columns = (
        TextColumn("{task.completed:.0f} of {task.total:.0f} " + what),
        BarColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=0, rate="", visible=False)

        def update(done: int, total: int) -> None:
            speed = rate.per_second(done)
            words = "" if speed is None else f"{speed:.1f}/s"
            bar.update(task, completed=done, total=total, rate=words, visible=True)

        yield update


class _Rate:
    """Speed since the first report: what came before it was mostly compiling."""

    def __init__(self) -> None:
        self.first: tuple[float, int] | None = None

    def per_second(self, done: int) -> float | None:
        now = time.monotonic()
        if self.first is None or done < self.first[1]:
            self.first = now, done
        start, before = self.first
        # The first images of a batch arrive together: a second must pass before a rate means much.
        return (done - before) / (now - start) if done > before and now > start + 1.0 else None


def _lines(what: str, rate: _Rate) -> Callable[[int, int], None]:
    from rmacjax.pictures import duration

    last = time.monotonic()

    def update(done: int, total: int) -> None:
        nonlocal last
        speed = rate.per_second(done)
        now = time.monotonic()
        if now - last < LINE_SECONDS or speed is None:
            return
        last = now
        left = f", {duration((total - done) / speed)} left" if done < total else ""
        say(f"{done} of {total} {what}, {speed:.1f} per second{left}")

    return update


def list_skipped(skipped: Sequence[tuple[str, str]]) -> None:
    """Say which photos were left out, and why."""
    if not skipped:
        return
    say(f"{count(len(skipped), 'photo')} could not be used:")
    for path, reason in skipped[:LISTED]:
        # Most reasons name the file; those that don't get the name in front.
        say(f"  {reason}" if repr(path) in reason else f"  {path!r}: {reason}")
    if len(skipped) > LISTED:
        say(f"  and {len(skipped) - LISTED} more (all of them with --json)")


def count(number: int, thing: str) -> str:
    """A number and its noun.

    >>> count(1, "photo"), count(1200, "photo")
    ('1 photo', '1,200 photos')
    """
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def check_writable(*files: str | None) -> None:
    """Find out before the work whether the files can be written.

    Raises:
        OSError: naming the file and what to do.
    """
    for file in files:
        if file is None or file == "-":
            continue
        folder = os.path.dirname(os.path.abspath(file))
        if os.path.isdir(file):
            raise OSError(f"{file!r} is a folder: name a file to write")
        if not os.path.isdir(folder):
            raise OSError(
                f"{file!r} cannot be written, there is no folder {folder!r}: make it first"
            )
        if not os.access(file if os.path.exists(file) else folder, os.W_OK):
            raise OSError(f"{file!r} cannot be written: no permission, choose another place")


def write_text(file: str, text: str) -> None:
    """Write a UTF-8 file and say so."""
    Path(file).write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
    say(f"Wrote {file}")


def write_json(file: str, document: Mapping[str, object]) -> None:
    """Write one JSON document to a file, or to stdout for "-"."""
    text = json.dumps(document, indent=2, allow_nan=False, default=_plain)
    if file == "-":
        print(text, flush=True)
    else:
        write_text(file, text + "\n")


def _plain(value: object) -> object:
    """NumPy's numbers and arrays as JSON knows them."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no place in JSON")


def finite(value: float) -> float | None:
    """A number for JSON, which has no NaN."""
    return value if value == value and abs(value) != float("inf") else None


def table(columns: Mapping[str, str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: drawn on a terminal, tab-separated with a heading line otherwise.

    Args:
        columns: headings and their alignment, "left" or "right".
        rows: one string per column each.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from rmacjax.pictures import printable

    console = Console()
    rows = [[printable(cell) for cell in row] for row in rows]
    if not console.is_terminal:
        for row in (list(columns), *rows):
            print("\t".join(row))
        return
    drawn = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for heading, side in columns.items():
        drawn.add_column(
            heading,
            justify="right" if side == "right" else "left",
            no_wrap=side == "right",
            overflow="fold",
        )
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    console.print(drawn)
