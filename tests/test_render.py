"""What reaches the terminal: control characters shown, brackets kept, results and notes apart."""

import io
import json
import math
import sys

import pandas as pd
import pytest
from rich.console import Console
from rich.progress import Progress as RichProgress

from mla_cli import render
from mla_cli.engine.events import Epoch, Finished, Note, Progress, Running, Started
from mla_cli.errors import MlaError
from mla_cli.render import Wide

TABLE = Wide(
    "dog [audio]", ["name", "[bold]"], [["a [red]x[/red]", "1.0"], ["b|c", ""]], ["note [1]"], {(0, 1), (1, 1)}
)


class Terminal(io.StringIO):
    """A terminal to the program, text to the test."""

    def isatty(self) -> bool:
        return True


def steps():
    """A run's events as `train` tells them."""
    yield Note("scanning raw/[audio]")
    yield Note("something is odd in [visual]", warning=True)
    yield Progress("features", 2, 2)
    yield Started("runs/[a]", 2, 1, 1, False)
    row = {"epoch": 1, "train_loss.mor": 1.5, "val_accuracy.mor": 0.5, "val_accuracy.fused": 0.625}
    yield Epoch(1, row, True, 0.25)
    yield Finished("runs/[a]", [])
    return "the value"


# ---------------------------------------------------------------- text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é ± 字\nnext", "plain é ± 字\nnext"),
        ("a\tb\x7f\x85", "a\\tb\\x7f\\x85"),
        ("zero\u200bwidth\ufeff", "zero\\u200bwidth\\ufeff"),
        ("not text \udcff", "not text \\udcff"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("back\rover", "back\\rover"),
        ("turn\u202eover", "turn\\u202eover"),
        ("\x9b2J", "\\x9b2J"),
    ],
)
def test_control_characters_are_shown(text: str, shown: str) -> None:
    assert render.printable(text) == shown


def test_errors_are_two_lines_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    render.fail(MlaError("`x` is wrong", "write `y`"))
    render.fail(MlaError("no hint"))
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "error: `x` is wrong\nhint: write `y`\nerror: no hint\n")


def test_say_keeps_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    render.say("heard")
    render.say("not heard", quiet=True)
    assert capsys.readouterr().err == "heard\n"


def test_numbers_as_people_read_them() -> None:
    assert (render.percent(0.6284), render.percent(1.0), render.percent(math.nan)) == ("62.8", "100.0", "")
    assert render.spread(0.6284, 0.0191, 3) == "62.8 ± 1.9"
    assert render.spread(0.6284, math.nan, 1) == "62.8"
    assert render.spread(0.6284, 0.0, 1) == "62.8", "one value has no spread"
    assert (render.counted(1, "epoch"), render.counted(2, "epoch")) == ("1 epoch", "2 epochs")


# ---------------------------------------------------------------- tables


def test_brackets_are_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    render.print_wide(TABLE)
    captured = capsys.readouterr()
    for part in ("dog [audio]\n", "[bold]", "a [red]x[/red]", "note [1]\n"):
        assert part in captured.out
    assert captured.err == ""
    assert "\x1b" not in captured.out, "no colours without a terminal"


@pytest.mark.parametrize("width", [30, 40, 60, 200])
def test_a_narrow_terminal_loses_no_character(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(render, "PLAIN_WIDTH", width)
    names, values = ["mla, hgm=rls", "late"], [f"{60 + i}.{i} ± 0.{i}" for i in range(1, 6)]
    render.print_wide(Wide("t", ["setting", *"abcde"], [[name, *values] for name in names], []))
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= width for line in lines)
    printed = "".join("".join(line.split("│")) for line in lines if line.startswith("│"))
    for text in [*names, *values]:
        assert all(printed.count(c) >= text.count(c) for c in text if c != " ")
    assert "…" not in printed
    assert ("61.1 ± 0.1" in printed) is (width == 200), "cells wrap only where they must"


def test_markdown_table() -> None:
    assert render.markdown(TABLE).splitlines() == [
        "**dog [audio]**",
        "",
        "| name | [bold] |",
        "|:--|--:|",
        "| a [red]x[/red] | **1.0** |",
        "| b\\|c |  |",
        "",
        "note [1]",
    ]


def test_tidy_rows_are_unrounded_and_empty_is_null(capsys: pytest.CaptureFixture[str]) -> None:
    third = 1 / 3  # needs 16 digits, one more than pandas' JSON would write
    table = pd.DataFrame({"n": [1, 2], "value": [third, math.nan], "smoke": [True, False], "name": ["a", ""]})
    render.print_tidy(table, "json")
    assert json.loads(capsys.readouterr().out) == [
        {"n": 1, "value": third, "smoke": True, "name": "a"},
        {"n": 2, "value": None, "smoke": False, "name": ""},
    ]
    render.print_tidy(table, "csv")
    assert capsys.readouterr().out == f"n,value,smoke,name\n1,{third!r},True,a\n2,,False,\n"


def test_unknown_format_is_refused() -> None:
    with pytest.raises(MlaError, match="no output format named `xml`"):
        render.check_format("xml")


# ---------------------------------------------------------------- events


def test_events_are_plain_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert render.show(steps()) == "the value"
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "scanning raw/[audio]",
        "warning: something is odd in [visual]",
        "features: 2 of 2",
        "runs/[a]: training, 2 epochs of 1 round",
        "epoch   1/2  loss mor 1.500  val accuracy % mor 50.0 fused 62.5  0.2 s  best",
        "runs/[a]: finished",
    ]


def test_quiet_shows_warnings_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert render.show(steps(), quiet=True) == "the value"
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "warning: something is odd in [visual]\n")


def test_a_terminal_gets_the_same_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert render.show(steps()) == "the value"
    for line in ("scanning raw/[audio]", "warning: something is odd in [visual]", "runs/[a]: finished"):
        assert line in terminal.getvalue()


def working(clock: list[float]):
    """400 of 1,000 are there already; twenty seconds later 600 are."""
    yield Progress("features", 400, 1000)
    clock[0] += 20.0
    yield Progress("features", 600, 1000)
    clock[0] += 20.0
    yield Progress("features", 1000, 1000)


def test_long_work_tells_its_rate_and_what_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [100.0]
    monkeypatch.setattr(render.time, "monotonic", lambda: clock[0])
    render.show(working(clock))
    assert capsys.readouterr().err.splitlines() == [
        "features: 600 of 1000 (10/s, 0:00:40 left)",
        "features: 1000 of 1000",
    ]


def test_a_grid_has_a_line_for_every_running_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal; without one, the plain lines of progress are enough."""

    def grid():
        yield Progress("epochs", 0, 8)
        yield Running("mfeat-[mla]-s0", 1, 4, "val", 0.625)
        yield Running("mfeat-late-s0", 2, 4)
        yield Running("mfeat-late-s0", 2, 4, ended=True)
        shown.append(terminal.getvalue())
        yield Running("never seen", 0, 4, ended=True)
        return None

    terminal, shown = Terminal(), []
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    bars = []
    monkeypatch.setattr(
        render, "Progress", lambda *columns, **how: bars.append(RichProgress(*columns, **how)) or bars[0]
    )
    render.show(grid())
    assert [(task.description, task.completed, task.total) for task in bars[0].tasks] == [
        ("epochs", 0, 8),
        ("mfeat-[mla]-s0", 1, 4),
    ]
    assert bars[0].tasks[1].fields["note"] == "val 62.5 %"
    drawn = io.StringIO()
    Console(file=drawn, width=120).print(bars[0].make_tasks_table(bars[0].tasks))
    assert "mfeat-[mla]-s0" in drawn.getvalue() and "1/4" in drawn.getvalue()
    plain = io.StringIO()
    monkeypatch.setattr(sys, "stderr", plain)
    render.show(grid())
    assert "mfeat" not in plain.getvalue()


def test_the_bar_shows_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    progress = render.Progress(render.RateColumn(), get_time=iter([float(i) for i in range(100)]).__next__)
    task = progress.add_task("features", total=1000)
    assert progress.columns[0](progress.tasks[0]).plain == ""
    progress.update(task, completed=200)
    progress.update(task, completed=400)
    assert progress.columns[0](progress.tasks[0]).plain.endswith("/s")
    assert any(isinstance(column, render.RateColumn) for column in columns_of_show(monkeypatch))


def columns_of_show(monkeypatch: pytest.MonkeyPatch) -> tuple[object, ...]:
    """What the bar of `show` is made of."""
    made: list[tuple[object, ...]] = []
    real = render.Progress
    monkeypatch.setattr(render, "Progress", lambda *columns, **how: (made.append(columns), real(*columns, **how))[1])
    render.show(steps())
    return made[0]
