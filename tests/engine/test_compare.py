"""Runs side by side: what becomes one row, what is tested, and what may not stand in one table."""

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tiny import mfeat_recipe, trained

from mla_cli.comparison import comparison_tables, paired_tables
from mla_cli.engine import compare as engine
from mla_cli.engine.compare import compare_runs, labels_of, request
from mla_cli.engine.paired import compare
from mla_cli.engine.run import Run
from mla_cli.errors import MlaError
from mla_cli.files import write_json
from mla_cli.wide import about

OFF: dict[str, Any] = {"train": {"diagnostics": False, "epochs": 1}}
SETTINGS: dict[str, dict[str, Any]] = {
    "rls": {"method": {"hgm": "rls"}},
    "off": {"method": {"hgm": "off"}},
    "late": {"method": {"name": "late", "hgm": "off"}, "train": {**OFF["train"], "lr": 0.1}},
    "limit": {"method": {"hgm": "off"}, "dataset": {"limit": 64}},
    "smoke": {"train": {**OFF["train"], "max_rounds": 1}},
    "mor": {"method": {"name": "unimodal", "hgm": "off", "unimodal": {"modality": "mor"}}},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, data_dir: Path, mfeat_store: Any) -> dict[str, Run]:
    """Finished runs by setting and seed: read them, do not change them."""
    folder = tmp_path_factory.mktemp("runs")
    wanted = [
        ("rls", 0),
        ("rls", 1),
        ("off", 0),
        ("off", 1),
        ("late", 0),
        ("limit", 0),
        ("mor", 0),
        ("smoke", 0),
    ]
    return {
        f"{name} {seed}": trained(mfeat_recipe(**({**OFF, **SETTINGS[name]} | {"seed": seed})), data_dir, folder)
        for name, seed in wanted
    }


def paths(runs: dict[str, Run], *names: str) -> list[str]:
    return [str(runs[name].path) for name in names]


def test_seeds_are_grouped_and_each_setting_is_tested_against_the_first(runs: dict[str, Run], tmp_path: Path) -> None:
    names = paths(runs, "rls 1", "off 0", "rls 0", "off 1", "late 0")
    found = compare_runs(names, tmp_path, request("test", "0", "0"))
    assert {label: [run.recipe().seed for run in own] for label, own in found.runs_of.items()} == {
        "mla, hgm=rls": [0, 1],
        "mla, hgm=off": [0, 1],
        "late": [0],
    }
    assert found.differing == ["train.lr"]
    runs_of = {
        "mla, hgm=rls": [runs["rls 0"], runs["rls 1"]],
        "mla, hgm=off": [runs["off 0"], runs["off 1"]],
        "late": [runs["late 0"]],
    }
    rules = {"mla, hgm=rls": "entropy", "mla, hgm=off": "entropy", "late": "native"}
    pd.testing.assert_frame_equal(found.tests, compare(runs_of, rules, "mla, hgm=rls"))
    table, tests = comparison_tables(found)
    assert table.columns == ["setting", "mor", "fou", "fused", "fused - mla, hgm=rls", "seeds"]
    assert [row[-1] for row in table.rows] == ["2", "2", "1"]
    first = [r for r in found.rows.to_dict("records") if r["output"] == "fused" and r["metric"] == "accuracy"]
    off = [r["value"] for r in first if r["setting"] == "mla, hgm=off"]
    assert table.rows[1][3].startswith(f"{100 * sum(off) / 2:.1f} ± ")
    assert "mfeat, protocol shipped, test n = 96, epoch chosen on val" in table.notes
    assert "apart from the method they differ in train.lr" in table.notes
    row = found.tests.iloc[1]
    assert tests.rows[1][:3] == [
        "late",
        f"{100 * row.difference:+.1f}",
        f"{100 * row.low:+.1f} to {100 * row.high:+.1f}",
    ]
    assert tests.rows[1][3:] == [
        f"{row.p:.3f}", f"{row.p_holm:.3f}", str(row.better), str(row.worse), f"{row.p_mcnemar:.3f}",
        f"{row.p_mcnemar_holm:.3f}", "1",
    ]  # fmt: skip
    assert tests.title == "fused, against mla, hgm=rls, on the same test items"
    notes = "\n".join(tests.notes)
    assert "paired bootstrap over 96 test items, of" in notes and "Holm over 2 rows" in notes


def test_tidy_rows_hold_results_and_tests(runs: dict[str, Run], tmp_path: Path) -> None:
    found = compare_runs(paths(runs, "rls 0", "late 0"), tmp_path, request("test", "0", "0"))
    tidy = found.tidy()
    assert tidy.columns[0] == "setting"
    p = tidy[tidy["metric"] == "paired_p"]
    assert p["setting"].tolist() == ["late"] and p["value"].iloc[0] == found.tests["p"].iloc[0]
    (difference,) = tidy[tidy["metric"] == "paired_difference"].to_dict("records")
    row = found.tests.iloc[0]
    assert (difference["value"], difference["low"], difference["high"]) == (row.difference, row.low, row.high)
    assert p["num_samples"].tolist() == [96] and p["split"].tolist() == ["test"]
    assert set(tidy["metric"]) >= {
        "accuracy",
        "macro_f1",
        "paired_difference",
        "paired_p",
        "paired_p_holm",
        "paired_p_mcnemar",
    }


def test_missing_rates_and_modalities_alone(runs: dict[str, Run], tmp_path: Path) -> None:
    found = compare_runs(paths(runs, "rls 0", "late 0", "mor 0"), tmp_path, request("test", "0.4", "0,1"))
    first, _, second = comparison_tables(found)
    assert [row[0] for row in first.rows] == ["mla", "late", "unimodal"]
    assert second.columns == ["setting", "0", "0.4"]
    assert [row[0] for row in second.rows] == ["mla", "late"], "one modality alone cannot miss any"
    assert second.notes == ["each run's mean over 2 mask seeds"]


def test_one_modality_has_nothing_to_lose_with_any_method(
    runs: dict[str, Run], data_dir: Path, mfeat_store: Any, tmp_path: Path
) -> None:
    one = trained(mfeat_recipe(**{**OFF, "dataset": {"modalities": ["mor"]}}), data_dir, tmp_path)
    found = compare_runs([str(one.path), *paths(runs, "rls 0")], tmp_path, request("test", "0,0.2", "0"))
    of_six = found.rows["setting"] == "mla (2)"
    assert set(found.rows[~of_six]["missing_rate"]) == {0.0}
    assert {0.0, 0.2} <= set(found.rows[of_six]["missing_rate"])
    notes = comparison_tables(found)[0].notes
    assert f"mla (1): {one.name}" in notes
    assert f"mla (2): {runs['rls 0'].name}" in notes


def test_a_missing_rate_of_some_rows_is_not_said_of_all(runs: dict[str, Run], tmp_path: Path) -> None:
    rows = compare_runs(paths(runs, "rls 0", "off 0"), tmp_path, request("test", "0", "0")).rows
    lacking = rows.assign(train_missing_rate=0.4, train_missing_pattern="kept_one")
    assert "trained at missing rate 0.4" in about(lacking)
    assert "trained at missing rates 0.4, 0 (kept_one)" in about(pd.concat([lacking, rows]))


def test_what_groups_and_too_few_of_them_leave_out() -> None:
    nan = float("nan")
    facts = {"setting": "late", "difference": -0.021, "better": 3, "worse": 9, "num_samples": 500, "seeds": 3}
    grouped = {"low": -0.04, "high": -0.001, "p": 0.0002, "p_holm": 0.0002, "units": 50}
    exact = {"p_mcnemar": nan, "p_mcnemar_holm": nan}
    (table,) = paired_tables(pd.DataFrame([facts | grouped | exact]), "mla")
    assert table.columns == ["setting", "difference", "95 %", "p", "p (Holm)", "better", "worse", "seeds"]
    assert table.rows == [["late", "-2.1", "-4.0 to -0.1", "< 0.001", "< 0.001", "3", "9", "3"]]
    assert "McNemar's test takes items as independent: not valid where they come in groups" in table.notes
    few = dict.fromkeys(("low", "high", "p", "p_holm"), nan) | {"units": 6}
    (table,) = paired_tables(pd.DataFrame([facts | few | exact]), "mla")
    assert table.rows == [["late", "-2.1", "", "", "", "3", "9", "3"]]
    assert "no p and no interval: 6 groups are fewer than 10" in table.notes
    assert paired_tables(pd.DataFrame(columns=["setting"]), "mla") == []


def test_val_has_no_tests(runs: dict[str, Run], tmp_path: Path) -> None:
    found = compare_runs(paths(runs, "rls 0", "off 0"), tmp_path, request("val", "0", "0"))
    (table,) = comparison_tables(found)
    assert found.tests.empty and "p" not in table.columns
    assert "val chooses, test reports: no tests of differences here" in table.notes
    assert set(found.tidy()["split"]) == {"val"}


def test_settings_without_a_common_seed_are_not_tested_and_named(runs: dict[str, Run], tmp_path: Path) -> None:
    found = compare_runs(paths(runs, "rls 1", "late 0"), tmp_path, request("test", "0", "0"))
    (table,) = comparison_tables(found)
    assert found.tests.empty
    assert "not tested, no seed or other items in common with mla: late" in table.notes


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("rls 0", "limit 0"), "`tiny-mla.*` and `tiny-mla.*`: the runs were scored on different items of one split"),
        (("rls 0", "smoke 0"), "rows of a smoke run cannot enter a table"),
        (("smoke 0", "rls 0"), "rows of a smoke run cannot enter a table"),
        (("rls 0",), "only `.*` to compare"),
    ],
)
def test_what_may_not_stand_in_one_table(
    names: tuple[str, ...], message: str, runs: dict[str, Run], tmp_path: Path
) -> None:
    with pytest.raises(MlaError, match=message) as refused:
        compare_runs(paths(runs, *names), tmp_path, request("test", "0", "0"))
    assert refused.value.hint


def test_one_recipe_and_seed_twice(runs: dict[str, Run], tmp_path: Path) -> None:
    copy = tmp_path / "copy" / runs["rls 0"].name
    shutil.copytree(runs["rls 0"].path, copy)
    with pytest.raises(MlaError, match="are runs of one recipe and seed"):
        compare_runs([*paths(runs, "rls 0"), str(copy)], tmp_path, request("test", "0", "0"))
    with pytest.raises(MlaError, match="only `"):  # the same run twice is one run
        compare_runs(paths(runs, "rls 0", "rls 0"), tmp_path, request("test", "0", "0"))


def test_an_ablations_folder_stands_for_its_finished_runs(runs: dict[str, Run]) -> None:
    folder = runs["rls 0"].path.parent / "ablate-x"
    names = [runs[name].name for name in ("off 0", "rls 0")]
    write_json(folder / "settings.json", {"runs": [*names, "never-began"]})
    found = compare_runs(["ablate-x"], folder.parent, request("test", "0", "0"))
    assert found.left_out == ["never-began"]
    assert "left out, not finished: never-began" in comparison_tables(found)[0].notes
    assert [run.name for own in found.runs_of.values() for run in own] == names
    first = compare_runs([runs["rls 0"].name, "ablate-x"], folder.parent, request("test", "0", "0"))
    assert first.full == "mla, hgm=rls", "the run named first is the one to compare with"
    grid = {"name": "over", "full": "rls", "command": [], "mask_seeds": [0], "patterns": ["kept_one"], "failed": []}
    rows = [{"setting": s, "rule": "entropy", "rates": [0], "runs": [runs[f"{s} 0"].name]} for s in ("off", "rls")]
    content = {"settings": {}, "runs": [*names, "never-began"], "grid": grid | {"rows": rows}}
    write_json(folder / "settings.json", content)
    ordered, left = engine.find_runs(["ablate-x"], folder.parent)
    assert [run.name for run in ordered] == names[::-1], "the full method first, whatever the order of names"
    assert left == ["never-began"]
    write_json(folder / "settings.json", {"runs": "all"})
    with pytest.raises(MlaError, match="lists no runs"):
        engine.find_runs(["ablate-x"], folder.parent)


def test_rows_are_called_after_what_tells_them_apart() -> None:
    def keys(**changes: Any) -> dict[str, Any]:
        base = {
            "method.name": "mla",
            "train.lr": 0.1,
            "head.lr": None,
            "train.epochs": 3,
            "shared_width": 8,
            "data": "a",
        }
        return base | {key.replace("__", "."): value for key, value in changes.items()}

    def names(*settings: dict[str, Any]) -> list[str]:
        return list(labels_of({str(i): s for i, s in enumerate(settings)}).values())

    assert names(keys(), keys(method__name="late", train__lr=1)) == ["mla", "late"]
    assert names(keys(), keys(train__lr=0.2)) == ["mla, lr=0.1", "mla, lr=0.2"]
    assert names(keys(), keys(train__lr=0.2, head__lr=1)) == [
        "mla, head.lr=None, train.lr=0.1",
        "mla, head.lr=1, train.lr=0.2",
    ]
    assert names(keys(), keys(data="b")) == ["mla, data=a", "mla, data=b"]
    assert names(keys(), keys(train__lr=1, head__lr=1, shared_width=1, data="b")) == ["mla (1)", "mla (2)"]
