"""The presets `table1`, `table3` and `hgm`: their grids, whether budgets sufficed, and their tables."""

import json
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from test_ablate import plan
from tiny import finish, mfeat_recipe

from mla_cli import registry, tables
from mla_cli.engine.ablate import ablate
from mla_cli.engine.budget import budgets
from mla_cli.engine.data import complete
from mla_cli.engine.presets import FULL, hgm_grid, preset_grid, table1_grid, table3_grid
from mla_cli.engine.run import Run
from mla_cli.errors import MlaError
from mla_cli.standings import significance_marks, significance_notes

ONE = {"train": {"epochs": 1}, "method": {"reconboost": {"epochs_alone": 1, "epochs_joint": 0}}}


@pytest.fixture
def recipe(mfeat_store):
    return complete(mfeat_recipe(), mfeat_store)


def test_table1_has_every_method_there_is(recipe) -> None:
    grid = table1_grid(recipe, [0, 1, 2])
    assert {s.recipe.method.name for s in grid.settings} == set(registry.names("methods"))
    assert [s.label for s in grid.settings][:3] == ["unimodal mor", "unimodal fou", "late"]
    variants = [s for s in grid.settings if s.recipe.method.name == "mla"]
    assert [s.recipe.method.hgm for s in variants] == ["off", "released", "released_add", "rls"]
    assert {s.rule for s in variants} == {"entropy"}
    assert {s.rule for s in grid.settings if s not in variants} == {"native"}
    assert grid.full == FULL == grid.settings[-1].label
    assert len({json.dumps(s.recipe.model_dump()) for s in grid.settings}) == len(grid.settings)  # no run twice


def test_all_rows_have_one_budget_and_one_set_of_encoders(recipe) -> None:
    shared = {
        json.dumps([s.recipe.train.model_dump(), s.recipe.model_dump()["encoders"]])
        for s in table1_grid(recipe, [0]).settings
    }
    assert len(shared) == 1


def test_a_method_that_is_added_gets_its_row(recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    names = registry.names("methods")
    listed = SimpleNamespace(names=lambda folder: [*names, "zeta"])
    monkeypatch.setattr("mla_cli.engine.presets.registry", listed)
    monkeypatch.setattr("mla_cli.engine.presets.rival", lambda recipe, name, **values: recipe)
    labels = [s.label for s in table1_grid(recipe, [0]).settings]
    assert labels[labels.index("reconboost") + 1] == "zeta"


def test_where_the_last_epoch_counts_the_modalities_alone_are_read_from_late(mfeat_store) -> None:
    grid = table1_grid(complete(mfeat_recipe(train={"select_on": "last"}), mfeat_store), [0])
    assert grid.unimodal_from_late
    assert "unimodal" not in {s.recipe.method.name for s in grid.settings}


def test_table3_switches_hgm_in_training_and_fusion_at_test_time(recipe) -> None:
    grid = table3_grid(recipe, [0])
    assert [(s.recipe.method.hgm, s.rule) for s in grid.settings] == [
        ("off", "uniform"),
        ("rls", "uniform"),
        ("off", "entropy"),
        ("rls", "entropy"),
    ]


def test_hgm_has_every_variant_reset_and_application(recipe) -> None:
    grid = hgm_grid(recipe, [0])
    keys = [(s.recipe.method.hgm, s.recipe.method.hgm_reset, s.recipe.method.hgm_apply) for s in grid.settings]
    assert keys[0] == ("rls", "never", "gradient")
    assert len(set(keys)) == len(keys) == 13  # three variants x 2 x 2, and `off`


def test_an_unknown_preset_names_the_nearest(recipe, data_dir: Path, tmp_path: Path, in_process) -> None:
    with pytest.raises(MlaError, match="no preset named `tabel1`") as error:
        preset_grid("tabel1", recipe, [0], [])
    assert error.value.hint == "did you mean `table1`?"


def trained_preset(name: str, data_dir: Path, folder: Path, seeds: tuple[int, ...] = (0, 1), **changes):
    asked = plan(seeds=seeds, rates=None, **(ONE | changes))
    asked.preset, asked.significance = name, name == "table1"
    return finish(ablate(asked, data_dir, folder))


@pytest.mark.slow
def test_table1_from_training_to_table(mfeat_store, data_dir: Path, tmp_path: Path, in_process) -> None:
    done = trained_preset("table1", data_dir, tmp_path)
    assert not done.failed
    first, budget = tables.ablation_tables(done)
    assert first.columns == ["method", "mor", "fou", "fused"]
    names = [row[0] for row in first.rows]
    assert names[:2] == ["unimodal", "late"]
    assert names[-1] == FULL
    assert len(names) == len(set(names)) == len(registry.names("methods")) + 3
    cell = first.rows[0]
    assert cell[3] == "" and "±" in cell[1] and "±" in cell[2]  # alone, so nothing is fused
    rows = done.rows[(done.rows["setting"] == "unimodal fou") & (done.rows["metric"] == "accuracy")]
    alone = rows[rows["output"] == "fou"].drop_duplicates("seed")["value"]
    assert cell[2] == f"{100 * alone.mean():.1f} ± {100 * alone.std():.1f}"
    for column in (1, 2, 3):  # one best cell a column at the least, and a second one unless all are equal
        assert any(c == column for _, c in first.best)
        assert any(c == column for _, c in first.second)
    assert any("2 training seeds" in note for note in first.notes)
    assert any("paired bootstrap over 96 test items" in note for note in first.notes)
    stored = pd.read_csv(done.path / "significance.csv")
    assert not set(stored["setting"]) & {"unimodal mor", "unimodal fou", FULL}
    assert (stored["p_holm"] >= stored["p"]).all()
    marks = significance_marks(stored)
    for row in first.rows[1:]:
        assert row[3].endswith(marks.get(row[0], "")) if marks.get(row[0]) else row[3][-1] not in "†‡"
    assert [row[0] for row in budget.rows] == []  # one epoch has no last fifth
    tables.write_ablation(done)
    assert "| unimodal |" in (done.path / "results.md").read_text()


def test_a_recipes_fusion_rule_does_not_choose_the_epochs_of_a_preset(mfeat_store) -> None:
    """Rows are read with each method's own rule, so that rule chooses."""
    recipe = complete(mfeat_recipe(fusion={"rule": "uniform"}), mfeat_store)
    for name in ("table1", "table3", "hgm"):
        assert {s.recipe.fusion.rule for s in preset_grid(name, recipe, [0], []).settings} == {None}


def test_complete_modalities_are_always_among_the_rates(
    mfeat_store,
    data_dir: Path,
    tmp_path: Path,
    in_process,
) -> None:
    asked = plan(seeds=(0,), rates="0.2", **ONE)
    asked.preset = "table3"
    done = finish(ablate(asked, data_dir, tmp_path))
    (table,) = tables.ablation_tables(done)
    assert all(row[-2] for row in table.rows)
    stale = done.path / "significance.csv"
    stale.touch()
    assert finish(ablate(asked, data_dir, tmp_path)).path == done.path
    assert not stale.exists()


def test_settings_without_a_finished_run_are_named(
    mfeat_store,
    data_dir: Path,
    tmp_path: Path,
    in_process,
) -> None:
    """`sum` and all that need two modalities fail on one."""
    done = trained_preset("table1", data_dir, tmp_path, seeds=(0,), dataset={"modalities": ["fou"]})
    first, _ = tables.ablation_tables(done)
    (note,) = [note for note in first.notes if note.startswith("left out")]
    assert "sum, film, bigated" in note and "late" not in note and FULL not in note


def test_rows_with_fewer_seeds_are_named(mfeat_store, data_dir: Path, tmp_path: Path, in_process) -> None:
    done = trained_preset("table3", data_dir, tmp_path)
    done.rows = done.rows[(done.rows["setting"] != "DF") | (done.rows["seed"] == 0)]
    (table,) = tables.ablation_tables(done)
    assert any("n = 2 training seeds (DF: 1)" in note for note in table.notes)


def test_marks_and_their_explanation() -> None:
    found = pd.DataFrame(
        {
            "setting": ["a", "b", "c"],
            "difference": [0.1, 0.0, 0.2],
            "p": [0.001, 0.5, 0.02],
            "p_holm": [0.003, 0.5, 0.04],
            "p_mcnemar": float("nan"),
            "num_samples": 50,
            "units": 20,
            "seeds": 3,
        }
    )
    assert significance_marks(found) == {"a": " ‡", "b": "", "c": " †"}
    assert "50 test items in 20 groups" in significance_notes(found, FULL)[0]
    assert "McNemar's test is not valid for groups" in significance_notes(found, FULL)[0]
    (note,) = significance_notes(found.assign(units=50, p_mcnemar=0.1), FULL)
    assert "50 test items, of" in note and "McNemar's p beside it" in note
    few = found.assign(p=float("nan"), p_holm=float("nan"), units=1)
    assert "items = 5, fewer" in significance_notes(few.assign(units=5, num_samples=5), FULL)[0]
    assert significance_marks(few) == {"a": "", "b": "", "c": ""}
    assert significance_notes(few, FULL) == [f"not tested against {FULL}: groups = 1, fewer than 10"]
    assert significance_notes(found.iloc[:0], FULL) == [f"nothing to compare with {FULL}"]


def test_table3_and_hgm_from_training_to_table(mfeat_store, data_dir: Path, tmp_path: Path, in_process) -> None:
    (three,) = tables.ablation_tables(trained_preset("table3", data_dir, tmp_path))
    assert sorted(in_process) == ["mla"] * 4  # DF costs no training
    assert [row[:2] for row in three.rows] == [["", ""], ["✓", ""], ["", "✓"], ["✓", "✓"]]
    assert three.rows[0][2:4] == three.rows[2][2:4]  # DF changes no modality alone
    assert three.rows[3][-1] == "" and "±" in three.rows[0][-1]
    done = trained_preset("hgm", data_dir, tmp_path, seeds=(0,))
    (variants,) = tables.ablation_tables(done)
    assert len(variants.rows) == 13
    off = next(row for row in variants.rows if row[0] == "off")
    place = variants.columns.index("head leak")
    ends = [run.history()[-1] for run in done.runs_of["off"]]
    assert off[place] == f"{ends[0]['head_leak']:.2g}"
    assert off[variants.columns.index("median eigenvalue")] == "1"


def history(folder: Path, curves: list[list[float]], samples: int = 400, split: str = "val") -> list[Run]:
    """Runs that hold nothing but validation accuracies."""
    runs = []
    for number, curve in enumerate(curves):
        path = folder / f"run{number}"
        path.mkdir(parents=True)
        lines = [json.dumps({"epoch": i + 1, f"{split}_accuracy.fused": value}) for i, value in enumerate(curve)]
        (path / "history.jsonl").write_text("".join(line + "\n" for line in lines))
        (path / "run.json").write_text(json.dumps({"data": {split: {"samples": samples}}}))
        runs.append(Run(path))
    return runs


def test_where_test_chooses_the_epoch_the_budget_is_judged_on_it(tmp_path: Path) -> None:
    runs = history(tmp_path, [[0.2, 0.4, 0.3, 0.3, 0.3]], split="test")
    row = budgets({"a": runs}).iloc[0]
    assert (row["best_epoch"], row["epochs"], bool(row["learning"])) == (2, 5, False)


def test_a_budget_sufficed_where_the_best_epoch_is_early_or_the_last_fifth_gains_little(tmp_path: Path) -> None:
    early = [0.1, 0.2, 0.3, 0.5, 0.6, 0.6, 0.5, 0.5, 0.5, 0.5]
    flat = [0.1, 0.2, 0.3, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.62]
    rising = [0.1 * i for i in range(1, 10)] + [0.96]
    found = budgets(
        {
            "early": history(tmp_path / "early", [early] * 3),
            "flat": history(tmp_path / "flat", [flat] * 3),
            "rising": history(tmp_path / "rising", [rising, rising, early]),
        }
    ).set_index("setting")
    assert found["best_epoch"].to_dict() == {"early": 5, "flat": 10, "rising": 10}
    assert found.loc["early", "gain"] == pytest.approx(-0.1)
    assert found.loc["flat", "gain"] == pytest.approx(0.02)
    assert found.loc["flat", "error"] == pytest.approx((0.6 * 0.4 / 400) ** 0.5)
    assert found.loc["rising", "gain"] == pytest.approx((0.16 * 2 - 0.1) / 3)
    assert found["learning"].to_dict() == {"early": False, "flat": False, "rising": True}
