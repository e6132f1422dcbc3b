"""`mla compare`, `mla diff` and `mla status` as a user types them."""

import csv
import io
import json
from pathlib import Path

import pytest
from command_line import mla

from mla_cli.engine import results


def test_compare_in_every_format(finished, folder: Path, prepared: tuple[str, str]) -> None:
    other = mla("train", "--recipe", finished.recipe, *prepared, "--no-hgm", "--quiet")
    assert other.code == 0, other.stderr
    names = [str(finished.run), other.stdout.split()[0]]
    seen = mla("compare", *names)
    assert (seen.code, seen.stderr) == (0, "")
    assert "mla, hgm=rls" in seen.stdout and "fused - mla, hgm=rls" in seen.stdout
    table = list(csv.DictReader(io.StringIO(mla("compare", *names, "--format", "csv").stdout)))
    assert list(table[0]) == ["setting", *results.COLUMNS]
    assert {row["seed"] for row in table} == {"0", ""}
    assert {row["metric"] for row in table} >= {"accuracy", "paired_p"}
    none = "no published numbers for mfeat in the reference ledger; it has cremad, food101, kinetics_sounds\n"
    asked = mla("compare", *names, "--reference")
    assert (asked.code, asked.stdout, asked.stderr) == (0, seen.stdout, none)
    assert "\\toprule" in mla("compare", *names, "--format", "latex").stdout
    differs = mla("diff", *names)
    assert (differs.code, differs.stderr) == (0, "")
    assert "method.hgm" in differs.stdout and "identical: " in differs.stdout
    keys = [row["key"] for row in json.loads(mla("diff", *names, "--format", "json").stdout)]
    assert keys[0] == "method.hgm"
    same = mla("diff", names[0], names[0])
    assert same.code == 0 and ": identical\n" in same.stdout


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("compare", "nothing"), "error: no run at `nothing`\nhint: "),
        (
            ("compare", "RUN"),
            "error: only `RUN` to compare\nhint: name two runs or more, or the folder of an ablation\n",
        ),
        (("compare", "RUN", "--split", "train"), "error: no split named `train`"),
        (("compare", "RUN", "--missing-rates", "2"), "error: `--missing-rates 2` is not a list of fractions\nhint: "),
        (("compare", "RUN", "--mask-seeds", "x"), "error: `--mask-seeds x` is not a list of different numbers\nhint: "),
        (
            ("compare", "RUN", "--format", "tex"),
            "error: no output format named `tex`\nhint: choose table, markdown, latex",
        ),
        (("diff", "RUN", "nothing"), "error: no run at `nothing`\nhint: `mla status --run-dir "),
        (("status", "--format", "yaml"), "error: no output format named `yaml`\nhint: "),
    ],
)
def test_errors(finished, words: tuple[str, ...], error: str) -> None:
    output = mla(*(str(finished.run) if word == "RUN" else word for word in words), *finished.places)
    assert (output.code, output.stdout) == (1, "")
    assert output.stderr.startswith(error.replace("RUN", str(finished.run)))


def test_usage_errors(finished) -> None:
    assert mla("compare").code == 2
    assert mla("diff", "one").code == 2
    assert mla("status", "one").code == 2


def test_status_lists_runs_and_sets(finished, folder: Path) -> None:
    seen = mla("status", *finished.places)
    assert (seen.code, seen.stderr) == (0, "")
    assert finished.run.name in seen.stdout and " finished " in seen.stdout and "2 of 2" in seen.stdout
    rows = list(csv.DictReader(io.StringIO(mla("status", *finished.places, "--format", "csv").stdout)))
    run = next(row for row in rows if row["name"] == finished.run.name)
    assert (run["kind"], run["state"], run["epoch"], run["epochs"]) == ("run", "finished", "2", "2")
    store = next(row for row in rows if row["name"] == "mfeat")
    assert (store["kind"], store["state"], store["samples"]) == ("store", "prepared", "2000")
    kept = json.loads(mla("status", *finished.places, "--format", "json").stdout)
    assert kept[0]["val"] == pytest.approx(float(rows[0]["val"]))


def test_status_of_nothing(folder: Path) -> None:
    seen = mla("status")
    assert (seen.code, seen.stderr) == (0, "")
    assert "none; train one with `mla train`" in seen.stdout and "none; prepare one with" in seen.stdout
    assert [path.name for path in folder.iterdir()] == ["mine.yaml"]
    assert mla("status", "--format", "json").stdout == "[]\n"
