"""Names that would steer a terminal, a page or a spreadsheet: every command shows them, and obeys none.

A character that a terminal acts on (C0 and C1 controls, marks of direction or without width, bytes that are no text)
may reach neither stdout nor stderr; a line break is the program's own.
"""

import csv
import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_line import Output, mla
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_cli import render
from mla_cli.engine.events import Note, Progress, Running, Started
from mla_cli.engine.predictions import read_predictions
from mla_cli.engine.run import Run
from mla_cli.errors import MlaError
from mla_cli.markup import Wide, one_line
from mla_cli.report.tags import At, code, details, paragraph, table, tiles

STEERING = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
NAMES = (
    "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "a\rb", "turn\u202eover", "zero\u200bwidth", "line\nbreak", "\x9b2J",
    "[red]x[/red]", "[/]", "[link=http://x.example]y", ":heart:", "<script>alert(1)</script>", "=1+1", "x" * 300,
)  # fmt: skip
OWN_TAGS = {"div", "table", "caption", "thead", "tbody", "tr", "th", "td", "span", "strong", "ul", "li", "p"}
OWN_TAGS |= {"pre", "code", "details", "summary", "dl", "dt", "dd"}
text_of_anyone = st.text(st.characters(), max_size=12) | st.sampled_from(NAMES)


def clean(output: Output, code: int = 0) -> Output:
    assert output.code == code, output.stderr
    assert not STEERING.search(output.stdout), ascii(output.stdout)
    assert not STEERING.search(output.stderr), ascii(output.stderr)
    return output


@pytest.fixture
def hostile(folder: Path) -> Path:
    """`t.csv`: NAMES are its labels, and stand in ids and texts, five rows of each."""
    with open("t.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "label", "title", "note"])
        for i in range(5 * len(NAMES)):
            name = NAMES[i % len(NAMES)]
            writer.writerow([f"{name}#{i}", name, f"words {name}", f"note {i % 3}" if i % 4 else ""])
    return folder


def test_commands_show_names_and_obey_none(hostile: Path) -> None:
    """Prepare, train and evaluate in every format, in one run: it trains for one epoch."""
    for option in ("--dry-run", "--check"):
        shown = clean(mla("prepare", "table", "--table", "t.csv", option, "--workers", 1))
    clean(mla("prepare", "table", "--table", "t.csv", "--workers", 1))
    recipe = Path("r[red]é.yaml")
    recipe.write_text("dataset: {name: table, store: t}\nshared_width: 4\ntrain: {epochs: 1, threads: 1}\n", "utf-8")
    clean(mla("train", "--recipe", recipe))
    (run,) = map(Run, Path("runs").glob("r*"))
    assert read_predictions(run.predictions).facts["classes"] == sorted(NAMES), "the data keep their names"
    for style in ("table", "markdown", "latex", "csv", "json"):
        shown = clean(mla("eval", "--metrics", "recall", "--format", style, "--no-intervals"))
        if style == "json":
            labels = {row["metric"].partition(".")[2] for row in json.loads(shown.stdout)}
            assert labels == set(NAMES), "JSON has escapes of its own: nothing is lost"
        elif style == "csv":
            labels = {row["metric"].partition(".")[2] for row in csv.DictReader(io.StringIO(shown.stdout))}
            assert labels == set(map(one_line, NAMES))
        else:
            assert "heart:" in shown.stdout and "script" in shown.stdout and "❤" not in shown.stdout
            assert ("\\x1b[31mred" in shown.stdout) is (style != "latex")
    for words in (["status"], ["recipes", "show", "t"], ["eval", "--diagnostics"]):
        clean(mla(*words))


@pytest.mark.parametrize("name", NAMES[:7])
@pytest.mark.parametrize(
    ("words", "exit_code"),
    [
        (("eval", "NAME"), 1),
        (("eval", "--metrics", "NAME"), 1),
        (("train", "--recipe", "NAME.yaml"), 1),
        (("train", "--set", "train.NAME=1"), 1),
        (("prepare", "NAME"), 1),
        (("prepare", "table", "--table", "NAME.csv"), 1),
        (("train", "--seed", "NAME"), 2),
        (("NAME",), 2),
    ],
)
def test_errors_show_what_was_typed(folder: Path, words: tuple[str, ...], exit_code: int, name: str) -> None:
    clean(mla(*(word.replace("NAME", name) for word in words)), exit_code)


def test_a_table_of_a_hostile_name_is_refused_as_a_folder(hostile: Path) -> None:
    Path("t.csv").rename("t\x1b[2J.csv")
    output = clean(mla("prepare", "table", "--table", "t\x1b[2J.csv"), 1)
    assert "`dataset.store` names a folder, got 't\\x1b[2J'" in output.stderr
    clean(mla("prepare", "table", "--table", "t\x1b[2J.csv", "--name", "tame", "--workers", 1))
    assert mla("train", "--recipe", "mine.yaml", "--set", f"name={'x' * 200}").code == 1


def test_problems_are_no_formulas(folder: Path) -> None:
    """`problems.csv` is opened in spreadsheets."""
    np.save("a.npy", np.array([[np.nan], *[[float(i)] for i in range(11)]]))
    rows = "".join(f"{'=cmd' if i == 0 else i},{'ab'[i % 2]},a.npy::{i}\n" for i in range(12))
    Path("t.csv").write_text(f"id,label,point\n{rows}", "utf-8")
    clean(mla("prepare", "table", "--table", "t.csv", "--max-bad", 1, "--workers", 1))
    (row,) = csv.DictReader(io.StringIO(Path("data/t/problems.csv").read_text("utf-8")))
    assert (row["id"], row["kind"], row["file"]) == ("'=cmd", "not_finite", "a.npy::0")


@settings(max_examples=30, deadline=None)
@given(text_of_anyone, text_of_anyone)
def test_no_text_steers_the_terminal(one: str, other: str) -> None:
    """Tables, messages and progress, to a pipe and to a terminal (where the program's own styles are taken away)."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    wide = Wide(one, [other, "n"], [[one, other], [other, "1"]], [one], {(0, 1)}, {(1, 1)})
    rows = pd.DataFrame([[one, 1.5], [other, None]], dtype=object)
    rows.columns = pd.Index(["a", f"{other}b"], dtype=object)  # pandas' own text type refuses half a surrogate pair

    def events():
        yield Note(one, warning=True)
        yield Started(other, 1, 1, 1, False)
        yield Progress(one, 1, 2)
        yield Running(other, 0, 1)

    styles = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
    for kind in (io.StringIO, Terminal):
        out, err = kind(), kind()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            for style in ("table", "markdown", "latex"):
                render.print_wide(wide, style)
            for style in ("csv", "json"):
                render.print_tidy(rows, style)
            render.print_lines([one, other])
            render.fail(MlaError(one, other))
            render.show(events())
        for stream in (out, err):
            written = stream.getvalue()
            written = styles.sub("", written).replace("\r", "") if kind is Terminal else written
            assert not STEERING.search(written), ascii(written)
        if kind is io.StringIO:
            lines = err.getvalue().splitlines()
            starts = [line[:6] for line in lines if line and not line.startswith("  ")]
            assert starts[: 1 + bool(other)] == ["error:", "hint: "][: 1 + bool(other)]


@settings(max_examples=50, deadline=None)
@given(text_of_anyone)
def test_no_text_is_markup_in_a_report(name: str) -> None:
    wide = Wide(name, [name, "n"], [[name, name]], [name], {(0, 1)})
    page = "".join(
        (table(At(2), "t", wide), paragraph(name), code(name, name), details(name), tiles([(name, name, name)]))
    )
    tags = set(re.findall(r"</?([a-z]\w*)", page))
    assert tags <= OWN_TAGS
    assert not STEERING.search(page)
    assert page.count('"') % 2 == 0
