"""`evaluate`: predictions to tidy rows, at any missing rate, pattern, mask seed and fusion rule, without torch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score
from tiny import difference, make_session, mfeat_recipe, trained

from mla_cli.core import fusion
from mla_cli.data.missing import draw_present
from mla_cli.engine.evaluate import (
    Evaluator,
    common_facts,
    count_groups,
    default_rows,
    evaluate,
    item_hash,
    mixed_logits,
    units_of,
)
from mla_cli.engine.predictions import read_predictions
from mla_cli.engine.request import Request, parse_request
from mla_cli.engine.results import COLUMNS
from mla_cli.engine.run import Run
from mla_cli.engine.scoring import score
from mla_cli.errors import MlaError

VIEWS = ("mor", "fou", "zer")


@pytest.fixture(scope="module")
def runs(mfeat_store, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        name: trained(mfeat_recipe(VIEWS, method={"name": name}, train={"epochs": 3}), data_dir, folder)
        for name in ("mla", "concat", "late")
    }


def test_units_count_where_any_holds_several_samples() -> None:
    assert count_groups(np.array([0, 1, 2, 0, 3])) == 4
    assert count_groups(np.arange(5)) == 0
    assert count_groups(np.array([], dtype=int)) == 0


def test_pairs_drawn_by_class_hang_together_by_their_sources(runs) -> None:
    p = read_predictions(runs["mla"].predictions).of_split("test")
    assert count_groups(units_of(p)) == 0
    p.ids = np.array([f"image{i}+voice{i % 12}" for i in range(len(p))], dtype=object)
    assert count_groups(units_of(p)) == 0  # a name is only a name, unless pairs were drawn
    p.facts = p.facts | {"splits": {"test": {"pair_seed": 0}}}
    assert count_groups(units_of(p)) == 12
    p.groups = np.full(len(p), "one", dtype=object)
    assert count_groups(units_of(p)) == 1


def test_test_items_are_told_apart_by_id_and_label(runs) -> None:
    p = read_predictions(runs["mla"].predictions).of_split("test")
    assert item_hash(p.take(np.arange(96)[::-1])) == item_hash(p)
    assert item_hash(p.take(np.arange(95))) != item_hash(p)
    p.labels = (p.labels + 1) % 10
    assert item_hash(p) != item_hash(read_predictions(runs["mla"].predictions).of_split("test"))


# ------------------------------------------------------------ rows


def accuracy_rows(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["metric"] == "accuracy"]


def test_rows_at_rate_0_are_the_stored_logits_counted_by_hand(runs) -> None:
    p = read_predictions(runs["mla"].predictions).of_split("test")
    rows = evaluate(runs["mla"], Request())
    assert list(rows.columns) == list(COLUMNS)
    found = accuracy_rows(rows).set_index("output")
    for i, m in enumerate(VIEWS):
        correct = sum(int(np.argmax(logits)) == label for logits, label in zip(p.logits[:, i], p.labels, strict=True))
        assert found.loc[m, "value"] == correct / len(p)
    fused = fusion.fuse(p.logits, p.present, "entropy")
    assert found.loc["fused", "value"] == (fused.argmax(1) == p.labels).mean()
    macro = rows[(rows["metric"] == "macro_f1") & (rows["output"] == "fused")]["value"].item()
    assert macro == pytest.approx(f1_score(p.labels, fused.argmax(1), average="macro"))
    assert set(rows["split"]) == {"test"}
    assert set(rows["num_samples"]) == {96}
    assert set(rows["fusion"]) == {"entropy", ""}
    assert set(rows["alone_readout"].dropna()) == {"shared head"}
    assert rows["mask_seed"].isna().all()  # nothing was drawn, so there is one row and no seed
    assert set(rows["method"]) == {"mla"}
    assert set(rows["hgm"]) == {"rls"}
    assert not rows["smoke"].any()


def test_rate_0_gives_one_row_whatever_the_mask_seeds(runs) -> None:
    rows = accuracy_rows(evaluate(runs["mla"], Request(rates=(0.0, 0.3), mask_seeds=(0, 1, 2), alone=False)))
    assert rows.groupby("missing_rate").size().to_dict() == {0.0: 1, 0.3: 3}


def test_mask_seeds_draw_different_absences_and_the_same_again(runs) -> None:
    request = Request(rates=(0.4,), mask_seeds=tuple(range(6)), alone=False)
    one, other = (accuracy_rows(evaluate(runs["mla"], request)) for _ in range(2))
    pd.testing.assert_frame_equal(one, other)
    assert one["mask_seed"].tolist() == list(range(6))
    assert one["value"].nunique() > 1
    entries = 96 * 3
    assert set(one["realised_rate"]) == {round(0.4 * entries) / entries}


def test_a_row_equals_the_draw_fused_by_hand(runs) -> None:
    p = read_predictions(runs["mla"].predictions).of_split("val")
    request = Request(split="val", rates=(0.5,), mask_seeds=(7,), rules=("uniform",), alone=False)
    row = accuracy_rows(evaluate(runs["mla"], request)).iloc[0]
    draw = draw_present(p.present, p.ids, p.modalities, pattern="kept_one", rate=0.5, seed=7, split="val")
    kept = np.where(draw.present[..., None], p.logits, 0).sum(1) / draw.present.sum(1)[:, None]
    assert row["value"] == (kept.argmax(1) == p.labels).mean()
    assert (row["missing_rate"], row["missing_pattern"], row["fusion"]) == (0.5, "kept_one", "uniform")


@pytest.mark.parametrize("method", ["mla", "concat", "late"])
def test_table_look_up_equals_running_the_model_on_what_is_left(runs, data_dir: Path, method: str) -> None:
    run = runs[method]
    p = read_predictions(run.predictions).of_split("test")
    draw = draw_present(p.present, p.ids, p.modalities, pattern="kept_one", rate=0.45, seed=1, split="test")
    recipe = run.recipe()
    looked_up = Evaluator(p, recipe, {}).fused(p.facts["default_rule"], draw.present)

    session = make_session(recipe, data_dir)
    session.load_model(run.load_checkpoint("best")[0])
    samples = session.data.splits["test"]
    samples.rows[~draw.present] = -1
    again = score(session, "test", every_subset=True)
    np.testing.assert_array_equal(again.present, draw.present)
    again.facts = p.facts
    fused = Evaluator(again, recipe, {}).fused(p.facts["default_rule"], again.present)
    assert difference(looked_up, fused) < 1e-4
    rows = accuracy_rows(evaluate(run, Request(rates=(0.45,), mask_seeds=(1,), alone=False)))
    assert rows["value"].item() == (fused.argmax(1) == p.labels).mean()


def test_mixed_logits_take_the_subset_that_is_present(runs) -> None:
    p = read_predictions(runs["concat"].predictions).of_split("test")
    present = p.present.copy()
    present[0] = [True, False, False]
    present[1] = [False, True, True]
    present[2] = False
    found = mixed_logits(p, present)
    np.testing.assert_array_equal(found[0], p.subsets[frozenset(("mor",))][0])
    np.testing.assert_array_equal(found[1], p.subsets[frozenset(("fou", "zer"))][1])
    assert np.isnan(found[2]).all()
    np.testing.assert_array_equal(found[3:], p.subsets[frozenset(VIEWS)][3:])


def test_a_sample_with_nothing_is_left_out_and_counted(runs) -> None:
    p = read_predictions(runs["mla"].predictions).of_split("test")
    p.present[5] = False
    p.logits[5] = np.nan
    rows = evaluate(runs["mla"], Request(rates=(0.0, 0.3)), p)
    fused = rows[rows["output"] == "fused"]
    assert set(fused["num_samples"]) == {95}
    assert set(rows[rows["output"] == "mor"]["num_samples"]) == {95}


def test_subsets_are_each_scored_on_the_whole_split(runs) -> None:
    rows = accuracy_rows(evaluate(runs["mla"], Request(patterns=("subset",), rules=("uniform",))))
    fused = rows[rows["output"] == "fused"].set_index("missing_pattern")
    assert list(fused.index) == [
        *(f"subset:{m}" for m in VIEWS),
        "subset:mor+fou",
        "subset:mor+zer",
        "subset:fou+zer",
        "subset:mor+fou+zer",
    ]
    alone = rows[rows["output"] != "fused"].set_index("output")["value"]
    assert [fused.loc[f"subset:{m}", "value"] for m in VIEWS] == [alone[m] for m in VIEWS]
    assert fused.loc["subset:mor", "realised_rate"] == pytest.approx(2 / 3)
    assert fused.loc["subset:mor+fou+zer", "realised_rate"] == 0
    assert fused["missing_rate"].isna().all()


def test_per_modality_rates(runs) -> None:
    request = Request(patterns=("per_modality",), rates=("mor=0.5,fou=0", 0.25), mask_seeds=(0, 1), alone=False)
    rows = accuracy_rows(evaluate(runs["mla"], request))
    assert rows["missing_rate"].tolist() == ["mor=0.5,fou=0"] * 2 + [0.25] * 2
    assert rows["realised_rate"].tolist() == pytest.approx([0.5 / 3] * 2 + [0.25] * 2)


def test_bernoulli_rows_hold_the_rate_that_was_realised(runs) -> None:
    rows = evaluate(runs["mla"], Request(patterns=("bernoulli",), rates=(0.9,), mask_seeds=(0, 1, 2), alone=False))
    assert rows["realised_rate"].between(0.5, 0.7).all()  # each sample keeps one of three
    assert rows["realised_rate"].nunique() > 1


def test_every_rule_gives_its_own_rows(runs) -> None:
    rules = ("entropy", "entropy_batch", "uniform", "energy", "native", "fixed")
    weights = {"mor": 1.0, "fou": 0.0, "zer": 0.0}
    rows = accuracy_rows(evaluate(runs["mla"], Request(rules=rules, weights=weights)))
    fused = rows[rows["output"] == "fused"].set_index("fusion")["value"]
    assert list(fused.index) == list(rules)
    assert fused["native"] == fused["uniform"]
    assert fused["fixed"] == rows.set_index("output")["value"]["mor"]


def test_default_rows_are_val_and_test_and_stand_in_results_csv(runs) -> None:
    rows = default_rows(runs["concat"])
    assert {row["split"] for row in rows} == {"val", "test"}
    stored = pd.read_csv(runs["concat"].path / "results.csv")
    assert list(stored.columns) == list(COLUMNS)
    assert stored["value"].tolist() == [row["value"] for row in rows]
    assert {row["impute"] for row in rows} == {"zeros"}
    assert {row["hgm"] for row in rows} == {""}


def test_rows_of_a_smoke_run_say_so(runs) -> None:
    recipe = runs["mla"].recipe()
    recipe.train.max_rounds = 2
    assert common_facts(runs["mla"], recipe, read_predictions(runs["mla"].predictions), "test")["smoke"] is True


def test_bernoulli_rows_hold_the_rate_to_expect_and_the_table_shows_it(runs) -> None:
    from mla_cli.tables import eval_tables

    rows = evaluate(runs["mla"], Request(patterns=("bernoulli",), rates=(0.0, 0.5), mask_seeds=(0, 1)))
    expected = (0.5 - 0.5**3) / (1 - 0.5**3)
    drawn = rows[rows["missing_rate"] == 0.5]
    assert drawn["expected_rate"].unique() == pytest.approx([expected])
    shown = eval_tables(rows)[-1].rows[1][3]
    assert shown == f"{drawn['realised_rate'].mean():.3f} (expected {expected:.3f})"


def test_natural_absence_is_reported_apart(runs) -> None:
    from mla_cli.tables import eval_tables

    p = read_predictions(runs["mla"].predictions).of_split("test")
    p.present[:48, 0] = False
    p.logits[:48, 0] = np.nan
    rows = evaluate(runs["mla"], Request(rates=(0.0, 0.25), mask_seeds=(0, 1)), p)
    assert rows["natural_absence"].unique() == pytest.approx([48 / 288])
    drawn = rows[rows["missing_rate"] == 0.25]
    assert set(drawn["realised_rate"]) == {60 / 240}  # of the entries that are really there
    note = "absent by nature, apart from the rates: 16.7 % of the split's entries"
    assert note in eval_tables(rows)[-1].notes
    assert not any("nature" in note for note in eval_tables(evaluate(runs["mla"], Request()))[-1].notes)


def test_patterns_are_pooled_at_every_rate_also_at_0(runs) -> None:
    request = Request(
        rates=(0.0, 0.3), patterns=("kept_one", "bernoulli", "per_modality"), mask_seeds=(0, 1, 2), alone=False
    )
    rows = accuracy_rows(evaluate(runs["mla"], request))
    pooled = rows[rows["missing_pattern"] == "pooled"]
    assert pooled.groupby("missing_rate").size().to_dict() == {0.0: 1, 0.3: 3}  # at rate 0 nothing is drawn
    for seed in (0, 1, 2):
        parts = rows[(rows["mask_seed"] == seed) & (rows["missing_pattern"] != "pooled")]
        assert len(parts) == 3
        assert pooled[pooled["mask_seed"] == seed]["value"].item() == pytest.approx(parts["value"].mean())


def test_the_area_under_the_curve_is_that_of_its_points(runs) -> None:
    request = Request(rates=(0.0, 0.5, 0.2), patterns=("kept_one", "bernoulli"), mask_seeds=(0, 1), alone=False)
    rows = evaluate(runs["mla"], request)
    areas = rows[rows["metric"] == "area_accuracy"]
    assert sorted(zip(areas["missing_pattern"], areas["mask_seed"], strict=True)) == [
        (p, s) for p in ("bernoulli", "kept_one", "pooled") for s in (0, 1)
    ]
    assert set(areas["missing_rate"]) == {"0..0.5"}
    points = accuracy_rows(rows).set_index(["missing_pattern", "missing_rate", "mask_seed"])["value"].sort_index()
    for pattern in ("bernoulli", "kept_one", "pooled"):
        y = [points[pattern, 0.0].item(), points[pattern, 0.2, 1], points[pattern, 0.5, 1]]
        found = areas[(areas["missing_pattern"] == pattern) & (areas["mask_seed"] == 1)]["value"].item()
        assert found == pytest.approx(np.trapezoid(y, [0.0, 0.2, 0.5]) / 0.5)
    assert set(rows[rows["metric"].str.startswith("area_")]["metric"]) == {"area_accuracy", "area_macro_f1"}


@pytest.mark.parametrize("rule", ["entropy", "entropy_batch", "uniform", "energy", "native", "fixed"])
@pytest.mark.parametrize("of", ["logits", "probabilities"])
def test_absent_logits_never_influence_a_fused_prediction(runs, rule: str, of: str) -> None:
    if (rule, of) == ("energy", "probabilities"):
        pytest.skip("energy is defined on logits only")
    p = read_predictions(runs["mla"].predictions).of_split("test")
    recipe = runs["mla"].recipe()
    recipe.fusion.of, recipe.fusion.weights = of, {"mor": 0.2, "fou": 0.3, "zer": 0.5}
    draw = draw_present(p.present, p.ids, p.modalities, pattern="kept_one", rate=0.5, seed=2, split="test")
    clean = Evaluator(p, recipe, {}).fused(rule, draw.present)
    assert np.isfinite(clean).all()
    for rubbish in (1e30, -7.0, np.nan, np.inf):
        if not np.isfinite(rubbish):
            p.present = draw.present  # logits of what is naturally there must be finite, or the run diverged
        p.logits = np.where(draw.present[..., None], p.logits, rubbish).astype(np.float32)
        np.testing.assert_array_equal(Evaluator(p, recipe, {}).fused(rule, draw.present), clean)


def test_requested_subsets_are_what_a_mixing_run_can_be_asked_for(mfeat_store, data_dir: Path, tmp_path: Path) -> None:
    recipe = mfeat_recipe(VIEWS, method={"name": "concat"}, train={"epochs": 1}, subsets=[["mor"], ["fou", "zer"]])
    run = trained(recipe, data_dir, tmp_path)
    rows = accuracy_rows(evaluate(run, Request(patterns=("subset",), alone=False)))
    assert rows["missing_pattern"].tolist() == ["subset:mor", "subset:fou+zer", "subset:mor+fou+zer"]
    every = accuracy_rows(evaluate(run, Request(patterns=("subset",), rules=("uniform",), alone=False)))
    assert len(every) == 7  # late fusion of what each modality says alone needs no stored subset
    with pytest.raises(MlaError, match="stored no logits for `") as error:
        evaluate(run, Request(rates=(0.5,)))
    assert "`subsets`" in error.value.hint
    p = read_predictions(run.predictions)
    p.present[:, 0] = False  # where `mor` is absent by nature, all that is there is `fou+zer`
    full = mixed_logits(p, p.present)
    np.testing.assert_array_equal(full, p.subsets[frozenset(("fou", "zer"))])
    del p.subsets[frozenset(("fou", "zer"))]
    np.testing.assert_array_equal(mixed_logits(p, p.present), p.subsets[frozenset(VIEWS)])  # which had it imputed


# ------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(rates=(0.7,)), "missing rate `0.7` cannot be met"),
        (Request(rates=(1.5,)), "not between 0 and 1"),
        (Request(rates=(1.0,), patterns=("bernoulli",)), "cannot be met"),
        (Request(rates=("mor=0.9,fou=0.9,zer=0.9",), patterns=("per_modality",)), "sum to `2.7`"),
        (Request(rates=("mar=0.5",), patterns=("per_modality",)), "no modality named `mar`"),
        (Request(patterns=("half",), rates=(0.2,)), "no missing pattern named `half`"),
        (Request(split="train"), "no predictions for split `train`"),
        (Request(rules=("fixed",)), "no released fixed weights"),
        (Request(rules=("best",)), "unknown fusion rule `best`"),
    ],
)
def test_requests_that_cannot_be_met(runs, request_: Request, message: str) -> None:
    with pytest.raises(MlaError) as error:
        evaluate(runs["mla"], request_)
    assert message in error.value.message
    assert error.value.hint


def test_requests_are_read_from_the_command_line() -> None:
    found = parse_request("val", ["0.1", "0.5"], ["bernoulli"], "0..2", ["uniform", "native"], "a=0.6,b=0.4")
    assert (found.split, found.rates, found.patterns) == ("val", [0.1, 0.5], ["bernoulli"])
    assert (found.mask_seeds, found.rules, found.weights) == ([0, 1, 2], ["uniform", "native"], {"a": 0.6, "b": 0.4})
    default = parse_request("test", None, None, "0", None)
    assert (default.rates, default.patterns, default.rules, default.weights) == ([0.0], ["kept_one"], [], None)
    assert parse_request("test", ["a=0.5,b=0"], ["per_modality"], "0", None).rates == ["a=0.5,b=0"]


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("train", None, None, "0", None), "no split named `train`", "--split test"),
        (("test", ["lots"], None, "0", None), "`--missing-rate lots` is not a number", "0.3"),
        (("test", ["a=0.5"], None, "0", None), "need their pattern", "--pattern per_modality"),
        (("test", ["a=0.5"], ["kept_one", "per_modality"], "0", None), "need their pattern", "--pattern per_modality"),
        (("test", None, ["kept_on"], "0", None), "no missing pattern named `kept_on`", "did you mean `kept_one`?"),
        (("test", None, None, "0", ["entropi"]), "no fusion rule named `entropi`", "did you mean `entropy`?"),
        (("test", None, None, "3,3", None), "not a list of different numbers", "0..9"),
        (("test", None, None, "0", None, "a=much"), "--fusion-weights a=much", "audio=0.6"),
    ],
)
def test_what_the_command_line_got_wrong_is_named(arguments: tuple, message: str, hint: str) -> None:
    with pytest.raises(MlaError) as error:
        parse_request(*arguments)
    assert message in error.value.message
    assert hint in error.value.hint


def test_an_unfinished_run_has_nothing_to_evaluate(tmp_path: Path) -> None:
    with pytest.raises(MlaError):
        evaluate(Run(tmp_path), Request())


def test_evaluating_imports_no_torch() -> None:
    code = "import mla_cli.engine.evaluate, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_evaluating_a_run_imports_no_torch(runs) -> None:
    code = (
        "import sys; from pathlib import Path; from mla_cli.engine.evaluate import Request, evaluate;"
        "from mla_cli.engine.run import Run;"
        f"rows = evaluate(Run(Path({str(runs['concat'].path)!r})), Request(rates=(0.0, 0.3)));"
        "assert len(rows); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
