"""`--check`, `--dry-run`, and paths that lead out of the raw root, through the command line."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import raw_trees
from command_line import mla

from mla_cli.data.features import compute
from mla_cli.data.store import Store
from mla_cli.tables import duration


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLA_RAW", raising=False)


# ---------------------------------------------------------------- looking before building


def test_a_check_lists_every_problem_by_kind() -> None:
    raw_trees.make_mvsa(Path("raw/mvsa"), missing=True, unlabelled=True, bad_row=True, empty=True, truncated=True)
    output = mla("prepare", "mvsa", "--check", "--workers", "2")
    assert output.code == 1
    lines = output.stdout.splitlines()
    start = lines.index("6 problems")
    counts = [line for line in lines[start + 1 :] if not line.startswith("  ")]
    assert counts == ["bad_row: 1", "empty: 1", "missing: 1", "undecodable: 1", "unknown_label: 2"]
    listed = [line for line in lines[start + 1 :] if line.startswith("  ")]
    assert len(listed) == 6
    assert any(
        re.fullmatch(r"  \d+ text data/\d+\.txt#encoding=latin-1: `\d+\.txt` has no bytes", line) for line in listed
    )
    assert "checked: " in output.stderr
    assert not Path("data").exists()


def planned(output: str) -> tuple[float, int]:
    """(megabytes, workers) of a dry run."""
    size = re.search(r"^would be built at data/\S+: ([\d.]+) MB, [\d,]+ MB are free$", output, re.M)
    time = re.search(
        r"^estimated time: \d+ s with (\d+) workers?, and some seconds to start \(.* ms a sample\)$", output, re.M
    )
    assert size, output
    assert time, output
    return float(size[1]), int(time[1])


def test_a_dry_run_says_how_much_and_how_long_and_builds_nothing() -> None:
    count = raw_trees.make_mvsa(Path("raw/mvsa"))
    output = mla("prepare", "mvsa", "--dry-run", "--workers", "2")
    assert output.code == 0
    assert planned(output.stdout) == (round(count * (3 * 64 * 64 + 4 * 384) / 1e6, 1), 2)
    assert f"mvsa: {count} samples under raw/mvsa" in output.stdout
    assert not Path("data").exists()


def test_spans_of_time() -> None:
    assert [duration(s) for s in (0.2, 119.5, 120, 7000, 7300)] == ["1 s", "120 s", "2 min", "117 min", "2.0 h"]


@pytest.mark.slow
@pytest.mark.parametrize("name", raw_trees.MAKERS)
def test_every_public_set_can_be_checked_and_planned(name: str) -> None:
    raw_trees.MAKERS[name](Path("raw") / name)
    checked = mla("prepare", name, "--check")
    assert checked.code == 0, checked.stdout
    assert "0 problems" in checked.stdout
    tried = mla("prepare", name, "--dry-run")
    assert tried.code == 0
    planned(tried.stdout)
    assert not Path("data").exists()


# ---------------------------------------------------------------- out of the root


@pytest.fixture
def table() -> Path:
    """`raw/my.csv` of pictures below `raw`, and `outside 1.jpg` beside it."""
    for i in range(12):
        raw_trees.write_jpeg(Path(f"raw/{i:02d}.jpg"), i)
    raw_trees.write_jpeg(Path("outside 1.jpg"), 99)
    lines = ["id,label,visual", *(f"{i:02d},{'xy'[i % 2]},{i:02d}.jpg" for i in range(12))]
    Path("raw/my.csv").write_text("\n".join(lines) + "\n")
    return Path("raw/my.csv")


@pytest.mark.parametrize("way", ["climbing", "absolute", "link"])
def test_a_table_leads_out_of_the_root_only_when_allowed(table: Path, way: str) -> None:
    os.symlink("../outside 1.jpg", "raw/link.jpg")
    cell = {"climbing": "../outside 1.jpg", "absolute": str(Path("outside 1.jpg").resolve()), "link": "link.jpg"}[way]
    table.write_text(table.read_text() + f"zz,x,{cell}\n")
    for how in ([], ["--check"], ["--dry-run"], ["--max-bad", "1"]):
        refused = mla("prepare", "table", "--table", table, *how)
        assert refused.code == 1
        assert refused.stdout == ""
        assert f"error: 1 paths of `raw/my.csv` lead outside of `raw` (first: `{cell}`)" in refused.stderr
        assert "--allow-outside" in refused.stderr
    assert not Path("data").exists()
    admitted = mla("prepare", "table", "--table", table, "--allow-outside")
    assert admitted.code == 0, admitted.stderr
    store = Store.open(Path("data/my"))
    row = store.index.set_index("id").loc["zz", "row.visual"]
    again = compute(store.spec("visual"), "image", Path(), "outside 1.jpg", allow_outside=True)
    np.testing.assert_array_equal(store.modality("visual").take(np.array([row]))[0], again.array)
    assert mla("prepare", "table", "--table", table, "--allow-outside", "--check").code == 0


def test_the_password_file_is_not_read(table: Path) -> None:
    up = os.path.relpath("/etc/passwd", "raw")
    assert up.startswith("../")
    for cell in (up, "/etc/passwd"):
        table.write_text(f"id,label,note\na,x,{cell}\nb,y,{cell}\n")
        output = mla("prepare", "table", "--table", table, "--modality", "note=text_file")
        assert output.code == 1
        assert f"2 paths of `raw/my.csv` lead outside of `raw` (first: `{cell}`)" in output.stderr
    assert not Path("data").exists()


def test_a_tree_with_links_to_another_disk_is_read_when_allowed() -> None:
    count = raw_trees.make_mvsa(Path("disk"))
    Path("raw/mvsa").mkdir(parents=True)
    os.symlink("../../disk/data", "raw/mvsa/data")
    Path("raw/mvsa/labelResultAll.txt").write_bytes(Path("disk/labelResultAll.txt").read_bytes())
    refused = mla("prepare", "mvsa")
    assert refused.code == 1
    assert f"{count} of {count} samples of `mvsa` are bad" in refused.stderr
    assert "is a link that leads outside the raw root; if it is yours: --allow-outside" in refused.stderr
    admitted = mla("prepare", "mvsa", "--allow-outside")
    assert admitted.code == 0, admitted.stderr
    assert f"{count} samples" in admitted.stdout
