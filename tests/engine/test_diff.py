"""What two runs differ in, part by part."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny import mfeat_recipe, trained, unsealed

from mla_cli.comparison import difference_table
from mla_cli.engine.diff import diff_runs, find_any_run
from mla_cli.engine.run import Run
from mla_cli.errors import MlaError
from mla_cli.files import read_json, write_json


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, data_dir: Path, mfeat_store: Any) -> tuple[Run, Run]:
    """Two finished runs, seeds 0 and 1: read them, do not change them."""
    folder = tmp_path_factory.mktemp("runs")
    recipes = [mfeat_recipe(train={"epochs": 1, "diagnostics": False}, seed=seed) for seed in (0, 1)]
    return trained(recipes[0], data_dir, folder), trained(recipes[1], data_dir, folder)


def changed_copy(run: Run, folder: Path, **facts: Any) -> Run:
    copy = Run(folder / run.name)
    shutil.copytree(run.path, copy.path)
    unsealed(copy.path)
    write_json(copy.path / "run.json", read_json(copy.path / "run.json") | facts)
    return copy


def test_identical_is_said(runs: tuple[Run, Run], tmp_path: Path) -> None:
    found = diff_runs(runs[0], changed_copy(runs[0], tmp_path))
    assert found.rows.empty and found.tidy().empty
    parts = ["recipe", "data", "versions", "machine", "command", "outcome", "results", "files"]
    assert found.identical == parts
    table = difference_table(found)
    assert table.title == f"{runs[0].path} and {tmp_path / runs[0].name}: identical"
    assert table.rows == [[part, "identical"] for part in parts]


def test_seeds_differ_in_recipe_results_and_files(runs: tuple[Run, Run]) -> None:
    found = diff_runs(*runs)
    recipe = found.rows[found.rows["part"] == "recipe"]
    assert recipe[["key", "one", "other"]].values.tolist() == [["seed", 0, 1]]
    assert set(found.rows["part"]) == {"recipe", "results", "files"}
    results = found.rows[found.rows["part"] == "results"]
    for row in results.itertuples():
        assert row.difference == row.other - row.one
    row = next(r for r in results.itertuples() if r.key == "test accuracy fused")
    line = next(cells for cells in difference_table(found).rows if cells[1] == "test accuracy fused %")
    assert line[2:] == [f"{100 * row.one:.1f}", f"{100 * row.other:.1f} ({100 * row.difference:+.1f})"]


def test_machine_versions_data_weights_and_command(runs: tuple[Run, Run], tmp_path: Path) -> None:
    info = runs[0].info()
    facts = {
        "device": "cuda",
        "versions": info["versions"] | {"torch": "9.9"},
        "data_fingerprint": "0" * 64,
        "data": info["data"] | {"test": {"samples": 95, "distinct": {"mor": 96, "fou": 96}}},
        "weights": {"mor": {"path": "w.pt", "sha256": "ab"}},
        "command": ["/x/mla", "train", "--recipe", "a"],
    }
    found = diff_runs(runs[0], changed_copy(runs[0], tmp_path, **facts))
    shown = {(r.part, r.key): (r.one, r.other) for r in found.rows.itertuples()}
    assert shown[("machine", "device")] == ("cpu", "cuda")
    assert shown[("versions", "versions.torch")] == (info["versions"]["torch"], "9.9")
    assert shown[("data", "data_fingerprint")] == (info["data_fingerprint"], "0" * 64)
    assert shown[("data", "test.samples")] == (96, 95)
    assert shown[("weights", "weights.mor.path")] == ("(not there)", "w.pt")
    assert shown[("command", "command")][1] == "mla train --recipe a"
    assert found.identical == ["recipe", "outcome", "results", "files"]
    assert "identical: recipe, outcome, results, files" in difference_table(found).notes
    long = next(row for row in difference_table(found).rows if row[1] == "data_fingerprint")
    assert "…" in long[2] and len(long[2]) <= 41
    assert json.loads(found.tidy().to_json(orient="records"))[0]["one"] == info["data_fingerprint"]


def test_an_unfinished_run_can_be_compared(runs: tuple[Run, Run], tmp_path: Path) -> None:
    copy = changed_copy(runs[0], tmp_path, state="failed", error="loss is nan")
    (copy.path / "results.csv").unlink()
    found = diff_runs(runs[0], find_any_run(copy.name, tmp_path))
    shown = {(r.part, r.key): (r.one, r.other) for r in found.rows.itertuples()}
    assert shown[("outcome", "error")] == ("(not there)", "loss is nan")
    assert shown[("results", "test accuracy fused")][1] == "(not there)"
    (copy.path / "results.csv").write_text("a\n1\n", "utf-8")
    with pytest.raises(MlaError, match=r"cannot read .*results\.csv"):
        diff_runs(runs[0], copy)
    with pytest.raises(MlaError, match="no run at `nothing`"):
        find_any_run("nothing", tmp_path)
