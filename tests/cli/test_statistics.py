"""`mla eval` with metrics, intervals and temperatures, as typed: exit code, tables on stdout, notes on stderr."""

import json

import pytest
from command_line import mla


def rows_of(*words: object) -> list[dict]:
    output = mla("eval", *words, "--quiet", "--format", "json")
    assert output.code == 0, output.stderr
    return json.loads(output.stdout)


def test_intervals_are_there_where_nothing_is_drawn(finished) -> None:
    rows = rows_of(finished.run, "--missing-rate", "0", "--missing-rate", "0.25", "--mask-seeds", "0,1")
    for row in rows:
        whole = row["mask_seed"] is None
        assert (row["low"] is not None) == whole
        if whole:
            assert row["low"] < row["value"] < row["high"]
    asked = rows_of(finished.run, "--missing-rate", "0.25", "--mask-seeds", "0", "--intervals")
    assert all(row["low"] is not None for row in asked)
    assert all(row["low"] is None for row in rows_of(finished.run, "--no-intervals"))
    again = rows_of(finished.run, "--missing-rate", "0", "--missing-rate", "0.25", "--mask-seeds", "0,1")
    assert again == rows  # resamples are the same every time


def test_all_metrics(finished) -> None:
    output = mla("eval", finished.run, "--metrics", "all")
    assert (output.code, output.stderr) == (0, f"evaluating {finished.run}\n")
    for name in ("NLL", "Brier", "ECE", "AURC", "mAP (%)", "entropy choice (%)", "oracle gap (%)"):
        assert f" {name} " in output.stdout
    assert "recall per class, %" in output.stdout
    assert output.stdout.count("test n = 96, epoch chosen on val") == 1


def test_what_is_not_defined_is_said(finished, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "mla_cli.core.metrics.right_alone", lambda logits, present, labels: present
    )  # both always right
    output = mla("eval", finished.run, "--metrics", "entropy_choice,accuracy", "--quiet")
    assert output.code == 0
    assert output.stderr.startswith("left out, not defined here: entropy_choice (")
    assert "entropy choice" not in output.stdout
    output = mla("eval", finished.run, "--metrics", "entropy_choice", "--quiet")
    assert (output.code, output.stdout) == (1, "")
    assert output.stderr.startswith("error: none of the metrics is defined for this run: `entropy_choice`\nhint: ")


def test_temperatures_before_and_after(finished) -> None:
    output = mla("eval", finished.run, "--temperature")
    assert output.code == 0, output.stderr
    assert " @ T = " in output.stdout
    assert " ECE " in output.stdout and " NLL " in output.stdout
    rows = rows_of(finished.run, "--temperature")
    assert len({row["temperature"] for row in rows}) == 4  # none, two modalities, the fused output


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        (("--metrics", "nll,acuracy"), "no metric named `acuracy`", "did you mean `accuracy`?"),
        (("--metrics", "nll,nll"), "metric `nll` is named twice", "name each once, or write `--metrics all`"),
        (
            ("--temperature", "--split", "val"),
            "`--temperature` is fitted on val, so `--split val` would praise it",
            None,
        ),
    ],
)
def test_errors(finished, words: tuple[str, ...], error: str, hint: str | None) -> None:
    output = mla("eval", finished.run, "--quiet", *words)
    assert (output.code, output.stdout) == (1, "")
    first, second = output.stderr.splitlines()
    assert first == f"error: {error}"
    assert second == f"hint: {hint}" if hint else second.startswith("hint: ")


@pytest.mark.parametrize("words", [("--metrics", "nll"), ("--temperature",), ("--no-intervals",)])
def test_rows_without_labels_have_no_metrics(finished, words: tuple[str, ...]) -> None:
    output = mla("eval", finished.run, "--table", "new.csv", *words)
    assert output.code == 2
    assert "without labels" in output.stderr
