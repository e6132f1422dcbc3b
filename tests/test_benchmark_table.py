"""`tests/benchmarks/run.py`: what it reads, what it prints and writes, and that no script is ever dropped."""

import importlib.util
import sys
from datetime import datetime
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parent / "benchmarks" / "run.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_run", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


GOOD = "RESULT epoch | 1.07 | ratio | <=1.10 | engine / bare loop\n"
BROKEN = "RESULT epoch | 1.30 | ratio | <=1.10 | engine / bare loop\n"
FREE = "RESULT matrix | 0.8 | s | - | a command | with a pipe in it\n"


def test_a_line_is_read_whole(bench: ModuleType) -> None:
    found = bench.parse(GOOD.rstrip())
    assert found == bench.Figure("epoch", 1.07, "ratio", "<=1.10", "engine / bare loop")
    assert bench.parse(FREE.rstrip()).what == "a command | with a pipe in it"


@pytest.mark.parametrize(
    ("value", "limit", "kept"),
    [
        (1.1, "<=1.10", True),
        (1.11, "<=1.10", False),
        (0.95, ">=0.95", True),
        (0.94, ">= 0.95", False),
        (7, "-", None),
        (float("nan"), "<=1", False),
        (float("nan"), ">=1", False),
    ],
)
def test_limits(bench: ModuleType, value: float, limit: str, kept: bool | None) -> None:
    assert bench.Figure("x", value, "ratio", limit, "").kept is kept


@pytest.mark.parametrize(
    ("output", "code", "failure"),
    [
        ([GOOD, FREE], 0, None),
        (["nothing to read\n"], 0, "no RESULT line"),
        ([], 0, "no RESULT line"),
        ([GOOD], 3, "exit code 3"),
        ([GOOD], 1, "exit code 1"),  # no limit is broken, so it failed in another way
        ([BROKEN], 2, "exit code 2"),
        ([GOOD, "RESULT half a line | 3\n"], 0, "not `<name>"),
        ([GOOD, "RESULT a | many | ratio | - | b\n"], 0, "could not convert"),
        ([GOOD, "RESULT a | 3 | ratio | about 4 | b\n"], 0, "the limit `about 4`"),
    ],
)
def test_what_fails_is_said(bench: ModuleType, output: list[str], code: int, failure: str | None) -> None:
    done = bench.outcome("script", output, code, 2.0, 0.1, 0.0)
    assert done.kept is (failure is None)
    if failure is not None:
        assert any(failure in text for text in done.failures)
        assert "| failed" in bench.table([done]) and failure in bench.table([done]).replace("\\|", "|")


def test_a_broken_limit_is_no_failure_of_the_script(bench: ModuleType) -> None:
    done = bench.outcome("script", [BROKEN], 1, 2.0, 0.1, 0.0)
    assert not done.failures and not done.kept
    assert "NO" in bench.table([done])


def test_the_table_is_markdown_of_equal_width(bench: ModuleType) -> None:
    done = bench.outcome("script", [GOOD, FREE], 0, 2.0, 0.1, 0.25)
    lines = bench.table([done]).splitlines()
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells == ["script", "epoch", "1.07", "<=1.10", "yes", "engine / bare loop", "2 s", "25%"]
    assert "0.8 s" in lines[3] and "with a pipe" in lines[3] and "\\|" in lines[3]


def test_the_document_says_when_the_machine_was_not_idle(bench: ModuleType) -> None:
    outcomes = [bench.outcome(n, [GOOD], 0, 2.0, 0.1, share) for n, share in (("calm", 0.01), ("busy", 0.4))]
    text = bench.document(outcomes, datetime(2026, 11, 26, 18, 5), ["Processor: none"])
    assert "Date: 2026-11-26 18:05 UTC\n- Processor: none\n" in text
    assert "Idle: NO" in text and "busy (40%)" in text and "calm (" not in text
    assert "Idle: yes" in bench.document(outcomes[:1], datetime(2026, 11, 26), [])
    unknown = [bench.outcome("script", [GOOD], 0, 2.0, 0.1, None)]
    assert "Idle: unknown" in bench.document(unknown, datetime(2026, 11, 26), [])
    assert "with --quick" in bench.document(unknown, datetime(2026, 11, 26), [], quick=True)


def test_every_script_of_this_tree_prints_figures(bench: ModuleType) -> None:
    """A script without a RESULT line would only be noticed in a run of minutes."""
    found = bench.scripts()
    assert len(found) >= 8 and "run" not in found
    assert [name for name, path in found.items() if bench.MARK not in path.read_text()] == []


def test_a_whole_run(bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Good, quick, crashing and silent scripts in one folder: all are in the table and in the file."""
    (tmp_path / "a_good.py").write_text(f"print({GOOD!r})")
    (tmp_path / "b_quick.py").write_text(
        "import sys\nprint(f'RESULT quick | {float(\"--quick\" in sys.argv)} | ratio | - | given')"
    )
    (tmp_path / "c_crash.py").write_text("import os\nos._exit(7)")
    (tmp_path / "_helper.py").write_text("raise SystemExit(9)")
    assert bench.main([], tmp_path) == 1
    printed = capsys.readouterr()
    written = (tmp_path / "RESULTS.md").read_text()
    assert written.endswith(printed.out)
    for row in ("a_good", "b_quick", "c_crash"):
        assert f"| {row} " in written
    assert "exit code 7" in written and "no RESULT line" in written and "_helper" not in written
    assert "Limits broken: 0; scripts failed: 1; figures: 2" in written
    (tmp_path / "RESULTS.md").unlink()
    assert bench.main(["--only", "b_quick", "a_good", "--quick"], tmp_path) == 0  # in the order asked for
    assert not (tmp_path / "RESULTS.md").exists(), "only a whole run writes it"
    assert "| quick  | 1 " in capsys.readouterr().out
    assert bench.main(["--list"], tmp_path) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["a_good", "b_quick", "c_crash"]
