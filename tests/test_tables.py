"""Wide tables from tidy rows: what is averaged, what is named, what is refused."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mla_cli import tables
from mla_cli.data.manifest import Problem
from mla_cli.engine import results
from mla_cli.engine.ablate import Ablation
from mla_cli.engine.inspection import Inspection
from mla_cli.engine.prepare import Prepared
from mla_cli.errors import MlaError

ROW: dict[str, Any] = {
    "dataset": "mfeat", "protocol": "shipped", "fold": 0, "split": "test", "recipe": "r", "method": "mla", "hgm": "rls",
    "fusion": "entropy", "seed": 0, "run": "r-mla-s0-f0-00000000", "checkpoint": "best@1", "selected_on": "val",
    "train_missing_rate": 0.0, "train_missing_pattern": "", "missing_rate": 0.0, "realised_rate": 0.0,
    "missing_pattern": "kept_one", "absent": "skip", "impute": "", "output": "fused", "metric": "accuracy",
    "num_samples": 600, "num_groups": 0, "smoke": False,
}  # fmt: skip


def rows(*changes: dict[str, Any]) -> pd.DataFrame:
    """Tidy rows that differ from ROW as said; a column `setting` stays beside the tidy ones."""
    frame = results.frame([ROW | {k: v for k, v in change.items() if k != "setting"} for change in changes])
    if "setting" in changes[0]:
        frame = frame.assign(setting=[change["setting"] for change in changes])
    return frame


def of_setting(setting: str, values: dict[int, float], **more: Any) -> list[dict[str, Any]]:
    """One row per training seed."""
    return [{"setting": setting, "seed": s, "run": f"{setting}-{s}", "value": v} | more for s, v in values.items()]


def ablation(frame: pd.DataFrame, labels: list[str], **more: Any) -> Ablation:
    described = {label: f"what {label} is" for label in labels}
    return Ablation(path=Path("runs"), rows=frame, labels=described, full=labels[0], runs=[], reused=0, **more)


# ---------------------------------------------------------------- one run


def test_eval_averages_over_mask_seeds_and_says_so() -> None:
    alone = [
        {"output": m, "fusion": "", "alone_readout": "shared head", "missing_pattern": None} for m in ("mor", "fou")
    ]
    fused = [{"missing_rate": 0.3, "realised_rate": 0.31, "mask_seed": s} for s in (0, 1)]
    frame = rows(
        *(a | {"metric": metric, "value": 0.5} for a in alone for metric in ("accuracy", "macro_f1")),
        *(
            f | {"metric": m, "value": v}
            for f, v in zip(fused, (0.6, 0.8), strict=True)
            for m in ("accuracy", "macro_f1")
        ),
    )
    first, second = tables.eval_tables(frame)
    assert first.rows == [["mor", "50.0", "50.0"], ["fou", "50.0", "50.0"]]
    assert "each modality alone (shared head)" in first.title
    assert second.rows == [["entropy", "kept_one", "0.3", "0.310", "70.0 ± 14.1", "70.0 ± 14.1", "2"]]
    assert second.notes == [
        "mfeat, protocol shipped, test n = 600, epoch chosen on val",
        "± is the sd over mask seeds of one training run",
    ]


def test_about_names_what_must_not_be_overlooked() -> None:
    frame = rows({"selected_on": "test", "smoke": True, "fold": 2, "train_missing_rate": 0.3})
    text = tables.about(frame.assign(train_missing_pattern="kept_one"))
    assert text == (
        "mfeat, protocol shipped fold 2, test n = 600, EPOCH CHOSEN ON TEST, trained at missing rate 0.3 (kept_one), "
        "SMOKE RUN: NOT A RESULT"
    )


# ---------------------------------------------------------------- ablations


def test_ablation_counts_seeds_and_pairs_the_difference() -> None:
    frame = rows(
        *of_setting("full", {0: 0.60, 1: 0.70}),
        *of_setting("other", {0: 0.55, 1: 0.63}),
        *of_setting("full", {0: 0.40, 1: 0.50}, output="mor", fusion=""),
    )
    (table,) = tables.ablation_tables(ablation(frame, ["full", "other"]))
    assert table.columns == ["setting", "mor", "fused", "fused - full", "seeds"]
    assert table.rows == [["full", "45.0 ± 7.1", "65.0 ± 7.1", "", "2"], ["other", "", "59.0 ± 5.7", "-6.0 ± 1.4", "2"]]
    assert table.best == {(0, 1), (0, 2)}


def test_missing_rates_get_a_table_of_their_own() -> None:
    frame = rows(
        *of_setting("full", {0: 0.6, 1: 0.7}),
        *(r for m in (0, 1) for r in of_setting("full", {0: 0.4, 1: 0.5}, missing_rate=0.5, mask_seed=m)),
    )
    _, table = tables.ablation_tables(ablation(frame, ["full"]))
    assert table.columns == ["setting", "0", "0.5"]
    assert table.rows == [["full", "65.0 ± 7.1", "45.0 ± 7.1"]]
    assert table.notes == ["each run's mean over 2 mask seeds; ± is the sd over training seeds"]


def test_smoke_ablation_has_no_numbers() -> None:
    frame = rows(*of_setting("full", {0: 0.6}, smoke=True))
    (table,) = tables.ablation_tables(ablation(frame, ["full"], smoke=True))
    assert table.rows == [["full", "what full is"]]


def test_runs_that_differ_in_protocol_are_not_averaged() -> None:
    frame = rows(*of_setting("full", {0: 0.6}), *of_setting("full", {1: 0.6}, protocol="random"))
    with pytest.raises(MlaError, match="the runs differ in protocol"):
        tables.ablation_tables(ablation(frame, ["full"]))


def test_best_cells_ignore_nothing_and_mark_ties() -> None:
    assert tables.best_cells([[0.5, math.nan], [0.5, 0.1]]) == {(0, 1), (1, 1), (1, 2)}
    assert tables.best_cells([[math.nan]]) == set()
    assert tables.best_cells([]) == set()


# ---------------------------------------------------------------- preparing and listing


def test_prepared_lines_say_what_pairs_rest_on_and_what_the_licence_asks() -> None:
    done = Prepared(Path("data/digits"), "digits", True, {"samples": 3, "audio": 1, "visual": 2}, [], "Voice: X.\n")
    splits = {
        "protocol": "shipped", "splits": {"train": 1, "val": 1, "test": 1}, "pair_seed": 7, "lines": ["no leak"],
        "distinct": {split: {"audio": 10, "visual": 500} for split in ("train", "val", "test")},
    }  # fmt: skip
    assert tables.prepared_lines(done, splits) == [
        "digits prepared data/digits: 3 samples (audio 1, visual 2)",
        "protocol shipped: train 1, val 1, test 1",
        "val pairs are drawn by class (pair_seed 7), distinct: 10 audio, 500 visual",
        "test pairs are drawn by class (pair_seed 7), distinct: 10 audio, 500 visual",
        "no leak",
        "",
        "Voice: X.",
    ]


def test_check_lists_every_problem_by_kind() -> None:
    problems = [
        Problem("missing", "b", "audio", "b.wav", "no such file"),
        Problem("empty", "a", "audio", "a.wav", "0 bytes"),
        Problem("missing", "c", "audio", "c.wav", "no such file"),
    ]
    report = Inspection(
        "set", Path("raw"), Path("data/set"), 3, {"audio": 1}, {"x": 3}, {"audio": 2_000_000}, {"audio": "float32 (1,)"}
    )
    report.problems, report.checked = problems, True
    lines = tables.inspection_lines(report)
    assert "  audio: 1 present, float32 (1,) each, 2.0 MB in the store" in lines
    assert lines[-6:] == [
        "3 problems",
        "empty: 1",
        "  a audio a.wav: 0 bytes",
        "missing: 2",
        "  b audio b.wav: no such file",
        "  c audio c.wav: no such file",
    ]


def test_first_comment_of_a_recipe() -> None:
    assert tables.first_comment("# What it is. Run: mla train\n# more\na: 1\n") == "What it is. Run: mla train"
    assert tables.first_comment("a: 1\n") == ""
