"""Records: what a training measures, for people who wait, for spreadsheets and for TensorBoard.

`steps.csv` has a row every few steps, each the mean since the row before; `validation.csv` has one
per validation. TensorBoard gets the same numbers. People see a line that moves on a terminal, and
plain lines elsewhere. A training that goes on from a checkpoint cuts what was recorded after it.

This is the only module that knows tensorboardX.
"""

import csv
import io
import os
import re
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column
from tensorboardX import SummaryWriter

from rmacjax.pictures import duration, printable

__all__ = ["STEPS_FILE", "VALIDATION_FILE", "Records", "Sheet"]

STEPS_FILE = "steps.csv"
VALIDATION_FILE = "validation.csv"
TENSORBOARD_FOLDER = "tensorboard"

Values = Mapping[str, Any]
"""Numbers by name: Python's, NumPy's, or scalars that are still being computed on a device."""


class Sheet:
    """A CSV file that grows by rows, each of a step.

    Columns may join later: rows before them are blank there. A row is written at once, so a program
    that is killed leaves at most one that is cut short, which the next one drops.
    """

    def __init__(self, path: str | os.PathLike[str], *, until: int | None = None) -> None:
        """Open a file.

        Args:
            path: what is not there is made with the first row.
            until: rows of later steps are cut; None: all of them, the file begins anew.

        Raises:
            OSError: where it cannot be read or written.
        """
        self.path = os.fspath(path)
        self.columns: list[str] = []
        self.rows_kept: list[dict[str, str]] = []
        if os.path.exists(self.path):
            if until is not None:
                self._read(until)
            if self.columns:
                self._rewrite()
            else:
                os.remove(self.path)

    def append(self, step: int, values: Mapping[str, float]) -> None:
        """Write a row.

        Raises:
            OSError: where it cannot be written.
        """
        row = {"step": str(step)} | {name: f"{value:.9g}" for name, value in values.items()}
        new = [name for name in row if name not in self.columns]
        if new:
            self.rows_kept = []
            if self.columns:
                self._read(step)
            self.columns += new
            self._rewrite()
        line = _line([row.get(name, "") for name in self.columns])
        with open(self.path, "a", encoding="utf-8", newline="") as file:
            file.write(line)

    def _read(self, until: int) -> None:
        """The header, and the whole rows up to a step."""
        with open(self.path, encoding="utf-8", errors="replace", newline="") as file:
            text = file.read()
        whole = text[: text.rfind("\n") + 1]
        rows = list(csv.reader(io.StringIO(whole)))
        self.columns = rows[0] if rows and rows[0][:1] == ["step"] else []
        self.rows_kept = [
            dict(zip(self.columns, row, strict=True))
            for row in rows[1:]
            if len(row) == len(self.columns) and row[0].isdecimal() and int(row[0]) <= until
        ]

    def _rewrite(self) -> None:
        lines = [_line(self.columns)]
        lines += [_line([row.get(name, "") for name in self.columns]) for row in self.rows_kept]
        unfinished = f"{self.path}.unfinished"
        with open(unfinished, "w", encoding="utf-8", newline="") as file:
            file.write("".join(lines))
        os.replace(unfinished, self.path)


class Records:
    """Everything that is written down during a training; a context manager that closes itself.

    Attributes:
        folder: where the files are.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        total_steps: int,
        resumed_at: int | None = None,
        measured: bool = True,
        every: int = 10,
        lines_every: int | None = None,
        console: Console | None = None,
    ) -> None:
        """Open a folder of records, or begin one.

        Args:
            folder: is made where it does not exist.
            total_steps: how many steps the whole training has.
            resumed_at: the step that the training goes on from: what was recorded after it is cut.
                None: it begins, and earlier records in the folder go.
            measured: whether that step was validated, if it was to be; what is recorded of that is
                cut where it will be again.
            every: steps per row.
            lines_every: steps per line where the console is no terminal, a multiple of `every`;
                None: the same. A line has the means of its rows.
            console: where people look; None for nobody.

        Raises:
            ValueError: for fewer than one step, or one per row.
            OSError: where the files cannot be written.
        """
        if total_steps < 1 or every < 1:
            raise ValueError(
                f"total_steps and every must be at least 1, not {total_steps} and {every}"
            )
        lines = every if lines_every is None else lines_every
        if lines < 1 or lines % every:
            raise ValueError(f"lines_every is a multiple of every ({every}), not {lines_every}")
        self.folder = os.path.abspath(folder)
        self._total, self._every, self._console = total_steps, every, console
        self._lines_every = lines
        try:
            os.makedirs(self.folder, exist_ok=True)
            self._steps = Sheet(os.path.join(self.folder, STEPS_FILE), until=resumed_at)
            until = None if resumed_at is None else resumed_at - (not measured)
            self._validations = Sheet(os.path.join(self.folder, VALIDATION_FILE), until=until)
            # Whoever looks at all runs of a folder is told what this one replaces.
            self._board = SummaryWriter(
                os.path.join(self.folder, TENSORBOARD_FOLDER),
                purge_step=0 if resumed_at is None else resumed_at + 1,
                flush_secs=10,
                # Its own names count seconds: two parts within one would share a file.
                filename_suffix=f".{time.time_ns()}",
            )
        except OSError as error:
            raise OSError(
                f"records cannot be kept in {self.folder!r} ({error.strerror or error}): name "
                "another folder"
            ) from error
        before = [float(row["seconds"]) for row in self._steps.rows_kept if row.get("seconds")]
        self._begun = time.monotonic() - max(before, default=0.0)
        self._waiting: list[Values] = []
        self._rows: list[dict[str, float]] = []
        self._last = 0
        self._speed = _Speed()
        self._bar, self._task = None, TaskID(0)
        if console is not None and console.is_terminal:
            # Where the terminal is narrow, what was measured takes several lines.
            columns = (
                TextColumn("step {task.completed:.0f} of {task.total:.0f}"),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[words]}", markup=False, table_column=Column()),
            )
            self._bar = Progress(*columns, console=console, transient=True)
            self._task = self._bar.add_task(
                "", total=total_steps, completed=resumed_at or 0, words=""
            )
            self._bar.start()

    def __enter__(self) -> "Records":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._waiting.clear()  # whatever went wrong, the device need not be waited for
        self.close()

    @property
    def seconds(self) -> float:
        """How long the training has taken, with its earlier parts as far as they are recorded."""
        return time.monotonic() - self._begun

    def step(self, step: int, values: Values, *, images: int) -> None:
        """Take down a step. Nothing is waited for, but where a row is due.

        Args:
            step: its number, from 1.
            values: numbers by name, "loss" among them; a row has their means since the last row.
            images: how many images the step saw.
        """
        self._waiting.append(values)
        self._last = step
        self._speed.step(images)
        due = step % self._every == 0 or step >= self._total
        if due:
            self._row(step)
        elif self._bar is not None:
            self._bar.update(self._task, completed=step)

    def validated(self, step: int, values: Mapping[str, float]) -> None:
        """Take down what a validation measured after a step.

        Args:
            step: how many steps there were before it.
            values: numbers by name; NaN is left blank.
        """
        known = {name: float(value) for name, value in values.items() if not np.isnan(value)}
        self._validations.append(step, known | {"seconds": self.seconds})
        for name, value in known.items():
            self._board.add_scalar(f"validation/{_tag(name)}", value, step)
        words = ", ".join(f"{name} {value:.3f}" for name, value in known.items())
        self.say(f"after step {step}: {words}")
        self._speed.pause()

    def say(self, words: str) -> None:
        """Tell people a sentence, above the line that moves."""
        if self._console is not None:
            self._console.print(printable(words), markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Write what is left, a last row too where steps have none yet."""
        if self._waiting:
            self._row(self._last)
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self._rows:
            self._say_row(self._last)
        self._board.close()

    def _row(self, step: int) -> None:
        means = _means(self._waiting)
        self._waiting.clear()
        speed = self._speed.per_second()
        measured = means if speed is None else means | {"images_per_second": speed}
        self._steps.append(step, measured | {"seconds": self.seconds})
        for name, value in measured.items():
            self._board.add_scalar(_tag(name), value, step)
        self._rows.append(measured)
        if self._bar is not None or step % self._lines_every == 0 or step >= self._total:
            self._say_row(step)

    def _say_row(self, step: int) -> None:
        means = _means(self._rows)
        speed = means.pop("images_per_second", None)
        words = [f"{name} {value:.4g}" for name, value in means.items()]
        if speed is not None:
            words.append(f"{speed:.1f} images/s")
        left = self._speed.seconds_per_step()
        if left is not None and step < self._total:
            words.append(f"{duration((self._total - step) * left)} left")
        if self._bar is not None:
            # What moves is the mean of the last lines_every steps.
            self._rows = self._rows[-(self._lines_every // self._every) :]
            self._bar.update(self._task, completed=step, words=printable(", ".join(words)))
        else:
            self._rows.clear()
            self.say(f"step {step} of {self._total}: {', '.join(words)}")


def _means(rows: Sequence[Values]) -> dict[str, float]:
    lists: dict[str, list[float]] = {}
    for values in rows:
        for name, value in values.items():
            lists.setdefault(name, []).append(float(value))
    return {name: float(np.mean(each)) for name, each in lists.items()}


class _Speed:
    """How fast steps follow each other, from the first one on: before it was mostly compiling."""

    def __init__(self) -> None:
        self._first: float | None = None
        self._steps = 0
        self._since = self._last = 0.0
        self._images = 0

    def step(self, images: int) -> None:
        self._last = time.monotonic()
        if self._first is None:
            self._first = self._since = self._last
        else:
            self._steps += 1
            self._images += images

    def pause(self) -> None:
        """What was done since the last step was something else."""
        now = time.monotonic()
        self._since += now - self._last
        self._last = now

    def per_second(self) -> float | None:
        """Images per second since this was asked last; the values of that step are there now."""
        now = time.monotonic()
        images, seconds = self._images, now - self._since
        self._images, self._since, self._last = 0, now, now
        return images / seconds if images and seconds > 0 else None

    def seconds_per_step(self) -> float | None:
        """With all that went on between them."""
        if self._first is None or not self._steps:
            return None
        return (time.monotonic() - self._first) / self._steps


def _line(cells: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _tag(name: str) -> str:
    """A name as TensorBoard takes it."""
    return re.sub(r"[^\w./-]+", "_", name).strip("_")
