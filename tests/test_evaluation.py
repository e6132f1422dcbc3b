"""The tables of `mla eval` from tidy rows: cells, intervals, what stands side by side, and what the notes say."""

from typing import Any

import pandas as pd
import pytest

from mla_cli.engine import results
from mla_cli.evaluation import eval_tables
from mla_cli.wide import about

ROW: dict[str, Any] = {
    "dataset": "mfeat", "protocol": "shipped", "fold": 0, "split": "test", "recipe": "r", "method": "mla", "hgm": "rls",
    "fusion": "entropy", "seed": 0, "run": "r-mla-s0-f0-00000000", "checkpoint": "best@1", "selected_on": "val",
    "train_missing_rate": 0.0, "train_missing_pattern": "", "missing_rate": 0.0, "realised_rate": 0.0,
    "natural_absence": 0.0, "missing_pattern": "kept_one", "absent": "skip", "impute": "", "output": "fused",
    "metric": "accuracy", "value": 0.5, "num_samples": 600, "num_groups": 0, "smoke": False,
}  # fmt: skip
ALONE = {"output": "mor", "fusion": "", "alone_readout": "shared head", "missing_pattern": None}


def rows(*changes: dict[str, Any]) -> pd.DataFrame:
    return results.frame([ROW | change for change in changes])


def test_intervals_stand_beside_shares_in_percent_and_plain_numbers_as_they_are() -> None:
    frame = rows(
        {"value": 0.6444, "low": 0.5931, "high": 0.6951, "num_groups": 257},
        {"metric": "nll", "value": 1.23456, "low": 1.1, "high": 1.4, "num_groups": 257},
        {"metric": "ece", "value": 0.0715, "num_groups": 257},
    )
    (table,) = eval_tables(frame)
    assert table.title == "r-mla-s0-f0-00000000: fused"
    assert table.columns == ["fusion", "missing rate", "accuracy (%)", "NLL", "ECE"]
    assert table.rows == [["entropy", "0", "64.4 [59.3, 69.5]", "1.235 [1.100, 1.400]", "0.071"]]
    assert table.notes == [
        "mfeat, protocol shipped, test n = 600, epoch chosen on val",
        "[low, high]: 95 % interval, bootstrap over 257 groups of test items; "
        "it says nothing about other training seeds",
        "ECE has no interval: resampling inflates it",
    ]


def test_items_are_the_units_where_there_are_no_groups() -> None:
    (table,) = eval_tables(rows({"low": 0.4, "high": 0.6}, {"metric": "macro_f1"}))
    assert "bootstrap over test items;" in table.notes[1]
    assert table.notes[2] == "no interval where resamples agree, fewer than 10 units count, or mAP would take minutes"


def test_too_few_groups_are_said() -> None:
    (table,) = eval_tables(rows({"num_groups": 1}))
    assert table.notes[1] == "no 95 % interval: 1 group, fewer than 10"


def test_many_metrics_stand_below_each_other() -> None:
    values = {"accuracy": 0.5, "macro_f1": 0.4, "nll": 1.0, "oracle_gap": 0.1}
    frame = rows(*({**ALONE, "metric": m, "value": v} for m, v in values.items() if m != "oracle_gap"),
                 *({"metric": m, "value": v} for m, v in values.items()))  # fmt: skip
    alone, fused = eval_tables(frame)
    assert alone.columns == ["modality", "accuracy (%)", "macro-F1 (%)", "NLL"]
    assert fused.columns == ["fusion", "missing rate", "metric", "value"]
    assert [row[2:] for row in fused.rows] == [
        ["accuracy (%)", "50.0"], ["macro-F1 (%)", "40.0"], ["NLL", "1.000"], ["oracle gap (%)", "10.0"],
    ]  # fmt: skip
    assert any(note.startswith("oracle gap: ") for note in fused.notes)
    four = rows(*({**ALONE, "metric": m} for m in ("accuracy", "macro_f1", "nll", "ece")))
    assert [row[0] for row in eval_tables(four)[0].rows] == ["accuracy (%)", "macro-F1 (%)", "NLL", "ECE"]


def test_many_metrics_of_many_modalities_have_a_line_each() -> None:
    names = ("accuracy", "macro_f1", "nll", "ece")
    frame = rows(*({**ALONE, "output": f"m{i}", "metric": m} for i in range(5) for m in names))
    alone, *_ = eval_tables(frame)
    assert alone.columns == ["modality", "metric", "value"]
    assert [row[:2] for row in alone.rows[3:5]] == [["m0", "ECE"], ["m1", "accuracy (%)"]]
    assert len(alone.rows) == 20


def test_runs_trained_at_other_missing_rates_are_not_called_alike() -> None:
    missing = {"train_missing_rate": 0.3, "train_missing_pattern": "kept_one"}
    assert about(rows(missing)).endswith(", trained at missing rate 0.3 (kept_one)")
    assert about(rows(missing, {})).endswith(", trained at missing rates 0.3, 0 (kept_one)")
    assert about(rows({}, missing)).endswith(", trained at missing rates 0, 0.3 (kept_one)")
    assert "trained" not in about(rows({}))


def test_temperatures_are_named_beside_what_they_scale() -> None:
    frame = rows(
        ALONE, {**ALONE, "temperature": 1.25}, {}, {"temperature": 0.9, "value": 0.6},
    )  # fmt: skip
    alone, fused = eval_tables(frame)
    assert [row[0] for row in alone.rows] == ["mor", "mor @ T = 1.250"]
    assert [(row[0], row[-1]) for row in fused.rows] == [("entropy", "50.0"), ("entropy @ T = 0.900", "60.0")]
    assert any(note.startswith("T: fitted on val") for note in fused.notes)


def test_the_samples_of_the_entropy_choice_are_said_and_no_others_change() -> None:
    drawn = {"missing_rate": 0.3, "realised_rate": 0.3}
    frame = rows(
        *(drawn | {"mask_seed": s} for s in (0, 1)),
        *(drawn | {"mask_seed": s, "metric": "entropy_choice", "num_samples": 30 + s} for s in (0, 1)),
    )
    (table,) = eval_tables(frame)
    assert table.columns[-3:] == ["accuracy", "entropy choice", "mask seeds"]
    assert "test n = 600," in table.notes[0]
    assert any("n = 30 to 31 of which exactly one is right" in note for note in table.notes)
    assert table.rows[0][-3:] == ["50.0 ± 0.0", "50.0 ± 0.0", "2"]


@pytest.mark.parametrize("rates", [(0.0,), (0.0, 0.3)])
def test_recall_per_class(rates: tuple[float, ...]) -> None:
    frame = rows(
        *({**ALONE, "metric": f"recall.{c}", "num_samples": n} for c, n in (("cat", 20), ("dog [x]", 30))),
        *(
            {"metric": f"recall.{c}", "num_samples": n, "missing_rate": rate, "value": 0.25}
            for rate in rates
            for c, n in (("cat", 21), ("dog [x]", 30))
        ),
    )
    (table,) = eval_tables(frame)
    assert table.title.endswith("recall per class, %")
    if len(rates) == 1:
        assert table.columns == ["class", "n", "mor", "fused"]
        assert table.rows == [["cat", "20..21", "50.0", "25.0"], ["dog [x]", "30", "50.0", "25.0"]]
    else:
        assert table.columns == ["output", "pattern", "missing rate", "class", "n", "recall"]
        assert len(table.rows) == 6
        assert table.rows[-1] == ["entropy", "kept_one", "0.3", "dog [x]", "30", "25.0"]
