"""Records: files read back by other means, and what people see."""

import csv
import io
import re
import struct
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from rmacjax.finetune import records
from rmacjax.finetune.records import Records, Sheet


def rows_of(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as opened:
        return list(csv.DictReader(opened))


def events_of(folder: Path) -> list[Event]:
    """TensorBoard's files, record by record: length, its sum, an event, its sum."""
    events = []
    for file in sorted(folder.iterdir()):
        data, position = file.read_bytes(), 0
        while position < len(data):
            (length,) = struct.unpack_from("<Q", data, position)
            events.append(Event.FromString(data[position + 12 : position + 12 + length]))
            position += 12 + length + 4
        assert position == len(data)
    return events


def scalars_of(folder: Path) -> list[tuple[str, int, float]]:
    return [
        (value.tag, event.step, value.simple_value)
        for event in events_of(folder)
        for value in event.summary.value
    ]


def plain() -> Console:
    return Console(file=io.StringIO(), width=40)


def said(console: Console) -> str:
    return console.file.getvalue()


def test_rows_are_means_since_the_row_before(tmp_path):
    console = plain()
    with Records(tmp_path / "run", total_steps=7, every=3, console=console) as kept:
        for step in range(1, 8):
            values = {"loss": jnp.float32(step), "rate": 1e-4, "clipped": np.float64(step % 2)}
            kept.step(step, values, images=4)
            if step == 3:
                kept.validated(3, {"filter mAP": 0.25, "+ AML mAP": float("nan")})
    rows = rows_of(tmp_path / "run" / "steps.csv")
    assert [row["step"] for row in rows] == ["3", "6", "7"]
    assert [float(row["loss"]) for row in rows] == [2.0, 5.0, 7.0]
    assert [float(row["rate"]) for row in rows] == [1e-4] * 3
    np.testing.assert_allclose([float(row["clipped"]) for row in rows], [2 / 3, 1 / 3, 1], 1e-8)
    seconds = [float(row["seconds"]) for row in rows]
    assert 0 <= seconds[0] <= seconds[1] <= seconds[2] < 60
    (validation,) = rows_of(tmp_path / "run" / "validation.csv")
    assert validation["step"] == "3" and float(validation["filter mAP"]) == 0.25
    assert set(validation) == {"step", "filter mAP", "seconds"}
    scalars = scalars_of(tmp_path / "run" / "tensorboard")
    assert [each[1:] for each in scalars if each[0] == "loss"] == [(3, 2), (6, 5), (7, 7)]
    assert ("validation/filter_mAP", 3, 0.25) in scalars
    lines = said(console).splitlines()
    assert len(lines) == 4  # not wrapped, narrow as the console is
    assert re.fullmatch(
        r"step 3 of 7: loss 2, rate 0.0001, clipped 0.6667, [\d.]+ images/s, .* left", lines[0]
    )
    assert lines[1] == "after step 3: filter mAP 0.250"
    assert "left" not in lines[3]


def test_a_row_is_written_for_the_steps_before_an_early_end(tmp_path):
    with Records(tmp_path, total_steps=100, every=10) as kept:
        for step in range(1, 14):
            kept.step(step, {"loss": float(step)}, images=1)
    rows = rows_of(tmp_path / "steps.csv")
    assert [(row["step"], float(row["loss"])) for row in rows] == [("10", 5.5), ("13", 12.0)]
    with pytest.raises(ZeroDivisionError), Records(tmp_path, total_steps=100) as kept:
        kept.step(1, {"loss": 1.0}, images=1)
        raise ZeroDivisionError
    assert not (tmp_path / "steps.csv").exists()


def train(folder: Path, first: int, last: int, resumed_at: int | None) -> None:
    with Records(folder, total_steps=40, every=5, resumed_at=resumed_at) as kept:
        for step in range(first, last + 1):
            kept.step(step, {"loss": step / 10}, images=2)
            if step % 10 == 0:
                kept.validated(step, {"mAP": step / 100})


def test_what_lies_beyond_the_step_that_is_gone_on_from_is_cut(tmp_path):
    train(tmp_path / "whole", 1, 40, None)
    train(tmp_path / "parts", 1, 33, None)
    before = float(rows_of(tmp_path / "parts" / "steps.csv")[3]["seconds"])
    train(tmp_path / "parts", 21, 40, 20)
    for file in ("steps.csv", "validation.csv"):
        timed = ("seconds", "images_per_second")
        whole, parts = (
            [
                {name: row[name] for name in row if name not in timed}
                for row in rows_of(folder / file)
            ]
            for folder in (tmp_path / "whole", tmp_path / "parts")
        )
        assert parts == whole
        assert (tmp_path / "parts" / file).read_text().count("step") == 1
    assert float(rows_of(tmp_path / "parts" / "steps.csv")[4]["seconds"]) >= before
    # TensorBoard is told from which step on the earlier part no longer counts.
    restarts = [
        e.step for e in events_of(tmp_path / "parts" / "tensorboard") if e.session_log.status
    ]
    assert restarts == [0, 21]
    # What the step is to be measured for once more was not measured.
    with Records(tmp_path / "parts", total_steps=40, resumed_at=30, measured=False):
        pass
    rows = rows_of(tmp_path / "parts" / "validation.csv")
    assert [row["step"] for row in rows] == ["10", "20"]
    assert rows_of(tmp_path / "parts" / "steps.csv")[-1]["step"] == "30"
    train(tmp_path / "parts", 1, 5, None)
    assert [row["step"] for row in rows_of(tmp_path / "parts" / "steps.csv")] == ["5"]
    assert not (tmp_path / "parts" / "validation.csv").exists()


def test_a_sheet_survives_a_row_cut_short_and_takes_new_columns(tmp_path):
    file = tmp_path / "sheet.csv"
    sheet = Sheet(file)
    sheet.append(1, {"loss": 1 / 3})
    sheet.append(2, {"loss": float("nan"), "a, b": 5})
    sheet.append(3, {"a, b": -1e-30})
    expected = [("1", "0.333333333", ""), ("2", "nan", "5"), ("3", "", "-1e-30")]
    assert [tuple(row.values()) for row in rows_of(file)] == expected
    with open(file, "a") as opened:
        opened.write("4,0.1")  # killed in the middle of a row
    Sheet(file, until=100).append(5, {"loss": 2})
    assert [tuple(row.values()) for row in rows_of(file)] == [*expected, ("5", "2", "")]
    Sheet(file, until=1)
    assert [tuple(row.values()) for row in rows_of(file)] == expected[:1]
    file.write_bytes(b"\xff\x00 something else")
    Sheet(file, until=1).append(2, {"loss": 1})
    assert rows_of(file) == [{"step": "2", "loss": "1"}]


def test_speed_is_that_of_the_steps_alone_and_time_left_of_everything(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr(records.time, "monotonic", lambda: now)
    console = plain()
    with Records(tmp_path, total_steps=1000, every=2, console=console) as kept:
        for step in range(1, 7):
            now += 50.0 if step == 1 else 2.0  # the first one is compiled
            kept.step(step, {"loss": 0.0}, images=8)
            if step == 4:
                now += 30.0
                kept.validated(4, {"mAP": 0.5})
        assert kept.seconds == 90
    rows = rows_of(tmp_path / "steps.csv")
    assert [float(row["images_per_second"]) for row in rows] == [4, 4, 4]
    # Five steps after the first took 40 s with the validation.
    assert f"{994 * 8 // 3600} h {994 * 8 % 3600 // 60} min left" in said(console).splitlines()[-1]


def test_a_terminal_gets_a_line_that_moves(tmp_path):
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with Records(tmp_path, total_steps=30, every=10, resumed_at=10, console=console) as kept:
        for step in range(11, 31):
            kept.step(step, {"loss": 0.5}, images=3)
            if step == 20:
                kept.validated(20, {"mAP": 0.75})
                kept.say("saved [bold]here[/bold] \x1b[31m")
                time.sleep(0.15)
        time.sleep(0.15)
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", said(console))
    assert "step 20 of 30" in text and "step 30 of 30" in text and "loss 0.5" in text
    assert "after step 20: mAP 0.750" in text
    assert "saved [bold]here[/bold]" in text and "\x1b[31m" not in said(console)
    assert text.splitlines()[-1].startswith("step 30 of 30: loss 0.5"), "the last one stays"


def test_a_narrow_terminal_gets_everything_in_several_lines(tmp_path):
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    measured = {"descriptors": 0.01751, "found": 0.25, "gradient": 4.74, "loss": 0.01751}
    with Records(tmp_path, total_steps=30, every=1, console=console) as kept:
        for step in range(1, 4):
            kept.step(step, measured, images=3)
        time.sleep(0.15)
    moving = re.sub(r"\x1b\[[\d;?]*[A-Za-z]|\s", "", said(console)).split("step3of30:")[0]
    assert "step3of30" in moving
    for words in ("descriptors0.01751", "found0.25", "gradient4.74", "loss0.01751", "images/s"):
        assert words in moving, words
    assert re.search(r"images/s,\S+left", moving)


def test_what_cannot_be_kept_is_refused(tmp_path):
    for numbers in ({"total_steps": 0}, {"total_steps": 5, "every": 0}):
        with pytest.raises(ValueError, match="total_steps and every must be at least 1, not"):
            Records(tmp_path, **numbers)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"records cannot be kept in '.*file' .*name another folder"):
        Records(tmp_path / "file", total_steps=1)
