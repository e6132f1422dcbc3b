"""`mla eval --diagnostics`: tables, rows and a figure from a run's history."""

import io
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from command_line import mla
from PIL import Image
from tiny import unsealed

from mla_cli.engine.history import COLUMNS, chosen_epoch, history_rows
from mla_cli.engine.run import Run
from mla_cli.errors import MlaError


def test_the_tables_are_those_of_the_epoch_that_was_scored(finished) -> None:
    output = mla("eval", finished.run, "--diagnostics", *finished.places)
    assert output.code == 0, output.stderr
    assert "every epoch: " in output.stderr
    chosen = chosen_epoch(Run(finished.run))
    assert f"each modality, epoch {chosen} of 2" in output.stdout
    row = Run(finished.run).history()[chosen - 1]
    for name in ("train accuracy %", "rho", "gradient norm", "forgetting", "cosine of head gradients", "head leak"):
        assert name in output.stdout
    line = next(line for line in output.stdout.splitlines() if line.startswith("│ fou "))
    assert [cell.strip() for cell in line.split("│")[2:5]] == [
        f"{100 * row['train_accuracy.fou']:.1f}",
        f"{100 * row['val_accuracy.fou']:.1f}",
        f"{row['rho.fou']:.3g}",
    ]
    for name in ("diagnostics.png", "diagnostics.svg"):
        assert (finished.run / name).stat().st_size > 1000
    with Image.open(finished.run / "diagnostics.png") as picture:
        assert picture.size[0] > 1000


@pytest.mark.parametrize("style", ["csv", "json"])
def test_rows_hold_every_figure_of_every_epoch(finished, style: str) -> None:
    output = mla("eval", finished.run, "--diagnostics", "--format", style, "--quiet", *finished.places)
    assert (output.code, output.stderr) == (0, "")
    rows = pd.read_csv(io.StringIO(output.stdout)) if style == "csv" else pd.DataFrame(json.loads(output.stdout))
    assert tuple(rows.columns) == COLUMNS
    lines = Run(finished.run).history()
    assert len(rows) == sum(len(line) - 1 for line in lines)
    one = rows[(rows["epoch"] == 2) & (rows["diagnostic"] == "head_cosine")]
    assert one["of"].tolist() == ["mor+fou"]
    assert one["value"].tolist() == [lines[1]["head_cosine.mor+fou"]]


def test_switches_of_the_evaluation_do_not_go_with_it(finished) -> None:
    output = mla("eval", finished.run, "--diagnostics", "--missing-rate", 0.3, *finished.places)
    assert (output.code, output.stdout) == (2, "")
    assert "--diagnostics shows the run's training" in output.stderr


def test_a_smoke_run_is_called_one(folder: Path, prepared) -> None:
    assert mla("train", "--recipe", "mine.yaml", "--smoke", *prepared).code == 0
    output = mla("eval", "--diagnostics", *prepared)
    assert output.code == 0, output.stderr
    assert "SMOKE RUN: NOT A RESULT" in output.stdout


def test_a_run_without_them_says_how_to_get_them(finished, folder: Path) -> None:
    copy = shutil.copytree(finished.run, folder / "copy")
    unsealed(copy)
    kept = [{"epoch": 1, "lr": 0.1, "train_loss.mor": None}]
    (copy / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    output = mla("eval", copy, "--diagnostics")
    assert (output.code, output.stdout) == (1, "")
    assert "was trained without diagnostics" in output.stderr
    assert "--set train.diagnostics=true" in output.stderr
    assert history_rows(Run(copy))["value"].isna().sum() == 1
    (copy / "history.jsonl").write_text("")
    with pytest.raises(MlaError, match="holds no epoch"):
        history_rows(Run(copy))
