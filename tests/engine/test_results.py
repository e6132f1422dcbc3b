"""The tidy table: means over mask seeds, then over training seeds, and no mean of what must not be averaged."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mla_cli.engine import results
from mla_cli.engine.results import COLUMNS, check_comparable, frame, over_mask_seeds, over_seeds, refuse_smoke
from mla_cli.errors import MlaError

# (training seed, mask seed) -> accuracy at missing rate 0.3
VALUES = {(0, 0): 0.50, (0, 1): 0.60, (0, 2): 0.70, (1, 0): 0.80, (1, 1): 0.80, (1, 2): 0.86}


def row(seed: int = 0, mask_seed: float = np.nan, value: float = 0.5, **changes) -> dict:
    facts = {
        "dataset": "emoji",
        "protocol": "shipped",
        "fold": 0,
        "split": "test",
        "recipe": "tiny",
        "method": "mla",
        "hgm": "rls",
        "fusion": "entropy",
        "seed": seed,
        "run": f"run-{seed}",
        "checkpoint": "best@2",
        "selected_on": "val",
        "train_missing_rate": 0.0,
        "train_missing_pattern": "",
        "missing_rate": 0.3,
        "realised_rate": 0.3 + (0.01 * mask_seed if mask_seed == mask_seed else 0),
        "missing_pattern": "kept_one",
        "mask_seed": mask_seed,
        "absent": "skip",
        "impute": "",
        "output": "fused",
        "metric": "accuracy",
        "value": value,
        "num_samples": 100,
        "num_groups": 20,
        "smoke": False,
    }
    return facts | changes


def table(**changes) -> pd.DataFrame:
    return frame([row(seed, mask, value, **changes) for (seed, mask), value in VALUES.items()])


def test_a_frame_has_exactly_the_columns_in_their_order() -> None:
    found = frame([{"value": 0.5, "dataset": "emoji"}])
    assert tuple(found.columns) == COLUMNS
    assert found["low"].isna().all()
    with pytest.raises(ValueError, match="colour"):
        frame([{"colour": 1}])


def test_mean_and_sd_over_mask_seeds_by_hand() -> None:
    found = over_mask_seeds(table()).set_index("seed")
    assert found["value"].to_dict() == pytest.approx({0: 0.60, 1: 0.82})
    assert found["sd"].to_dict() == pytest.approx({0: 0.10, 1: np.std([0.8, 0.8, 0.86], ddof=1)})
    assert found["n"].to_dict() == {0: 3, 1: 3}
    assert found["realised_rate"].to_dict() == pytest.approx({0: 0.31, 1: 0.31})


def test_a_single_value_keeps_its_interval_and_a_mean_has_none() -> None:
    bounded = table(low=0.4, high=0.9)
    assert over_mask_seeds(bounded)["low"].isna().all()
    one = over_mask_seeds(bounded[bounded["mask_seed"] == 0])
    assert one[["low", "high"]].drop_duplicates().values.tolist() == [[0.4, 0.9]]


def test_draws_over_other_numbers_of_samples_are_averaged_too() -> None:
    """`entropy_choice` is over the samples of which exactly one modality is right: other ones in every draw."""
    counted = table(metric="entropy_choice")
    counted["num_samples"] = 10 + counted["mask_seed"]
    found = over_mask_seeds(counted)
    assert found["n"].tolist() == [3, 3]
    assert found["num_samples"].tolist() == [11, 11]


def test_mean_and_sd_over_training_seeds_are_those_of_the_runs_means() -> None:
    found = over_seeds(table(), by=["method"])
    assert len(found) == 1
    first = found.iloc[0]
    assert first["value"] == pytest.approx((0.60 + 0.82) / 2)
    assert first["sd"] == pytest.approx(0.22 / np.sqrt(2))
    assert first["n"] == 2  # two runs, not six draws
    assert first["num_samples"] == 100


def test_the_sd_of_one_run_is_empty() -> None:
    found = over_seeds(table()[lambda t: t["seed"] == 0], by=["method"])
    assert np.isnan(found.iloc[0]["sd"])
    assert found.iloc[0]["n"] == 1


def test_settings_rates_outputs_and_metrics_stay_apart() -> None:
    parts = [
        table(),
        table(method="late").assign(run="late-0"),
        table(missing_rate=0.5),
        table(output="audio"),
        table(metric="macro_f1"),
    ]
    parts[1]["run"] = ["late-" + str(seed) for seed in parts[1]["seed"]]
    found = over_seeds(pd.concat(parts), by=["method"])
    assert len(found) == 5
    assert set(found["n"]) == {2}


def test_columns_that_a_caller_added_are_kept() -> None:
    found = over_seeds(table().assign(setting="full"), by=["setting"])
    assert found["setting"].tolist() == ["full"]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("dataset", "digits"),
        ("protocol", "random"),
        ("fold", 1),
        ("split", "val"),
        ("items", "0a1b2c3d"),
        ("selected_on", "test"),
        ("train_missing_rate", 0.2),
        ("train_missing_pattern", "bernoulli"),
    ],
)
def test_rows_that_differ_in_what_forbids_an_average_are_refused(column: str, value: object) -> None:
    mixed = table()
    mixed[column] = [mixed[column].iloc[0] if seed == 0 else value for seed in mixed["seed"]]
    message = "different items of one split" if column == "items" else f"the runs differ in {column}: "
    with pytest.raises(MlaError, match=message) as error:
        over_seeds(mixed, by=["method"])
    assert f"`{value}`" in error.value.message
    assert error.value.hint


@pytest.mark.parametrize(
    ("column", "value"), [("fold", 1), ("items", "0a1b2c3d"), ("selected_on", "last"), ("protocol", "random")]
)
def test_settings_of_other_items_or_selection_share_no_table(column: str, value: object) -> None:
    """Each setting agrees in itself; side by side they would be compared."""
    other = table(**{"method": "late", column: value}).assign(run=lambda t: "late-" + t["seed"].astype(str))
    with pytest.raises(MlaError):
        over_seeds(pd.concat([table(), other]), by=["method"])
    trained_with_less = other.assign(**{column: table()[column].iloc[0]}, train_missing_rate=0.3)
    assert len(over_seeds(pd.concat([table(), trained_with_less]), by=["method"])) == 2  # that is what is compared


def test_an_imported_run_stands_alone() -> None:
    """Two epochs that were chosen nobody knows how are not chosen alike."""
    imported = table(selected_on="unknown (imported)")
    with pytest.raises(MlaError, match="how the epoch of `run-0` was chosen is unknown") as error:
        over_seeds(imported, by=["method"])
    assert error.value.hint == "show it by itself: `mla eval run-0`"
    check_comparable(imported[imported["seed"] == 0])


def test_different_sets_of_mask_seeds_are_refused() -> None:
    with pytest.raises(MlaError, match="mask seeds"):
        over_seeds(table().iloc[:-1], by=["method"])
    other = table()
    other.loc[other["seed"] == 1, "mask_seed"] += 3  # as many, but others
    with pytest.raises(MlaError, match="mask seeds"):
        over_seeds(other, by=["method"])


def test_mask_seeds_may_differ_between_rates() -> None:
    complete = frame([row(seed, value=0.9, missing_rate=0.0) for seed in (0, 1)])
    found = over_seeds(pd.concat([complete, table()]), by=["method"])
    assert found["value"].tolist() == pytest.approx([0.9, 0.71])


def test_smoke_rows_are_refused() -> None:
    refuse_smoke(table())
    some = table()
    some.loc[2, "smoke"] = True
    for refuse in (refuse_smoke, lambda t: over_seeds(t, by=["method"])):
        with pytest.raises(MlaError, match="smoke run"):
            refuse(some)


def test_the_same_seed_twice_in_a_setting_is_refused() -> None:
    twice = pd.concat([table(), table(run="run-0-again")[lambda t: t["seed"] == 0]])
    with pytest.raises(MlaError, match="same seed"):
        over_seeds(twice, by=["method"])


def test_comparable_columns_can_be_chosen() -> None:
    check_comparable(table())
    mixed = pd.concat([table(), table(split="val").assign(run="other")])
    check_comparable(mixed, columns=("dataset",))
    with pytest.raises(MlaError, match="split"):
        check_comparable(mixed)


def test_values_are_written_unrounded_and_read_back(tmp_path: Path) -> None:
    exact = table()
    exact["value"] = exact["value"] / 3
    results.write_csv(exact, tmp_path / "results.csv")
    found = pd.read_csv(tmp_path / "results.csv")
    assert tuple(found.columns) == COLUMNS
    assert found["value"].tolist() == exact["value"].tolist()
    assert not list(tmp_path.glob(".*"))
    again = results.read_csv(tmp_path / "results.csv")
    assert again["low"].isna().all() and again["mask_seed"].tolist() == exact["mask_seed"].tolist()
    assert (again["impute"] == "").all()
