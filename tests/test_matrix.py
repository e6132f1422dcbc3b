"""The preset `missing`: its grid, its rates, its tables and its figures, from made-up rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tiny import digits_recipe, events_and_value, finish, make_session, mfeat_recipe

from mla_cli.data.missing import subsets
from mla_cli.engine import results
from mla_cli.engine.ablate import Ablation, Plan, ablate, rates_to_meet
from mla_cli.engine.data import complete
from mla_cli.engine.executor import Local
from mla_cli.engine.figures import missing_figures
from mla_cli.engine.grids import missing_grid
from mla_cli.errors import MlaError
from mla_cli.matrix import missing_tables

# fused accuracy of (method, training rate, test rate), seeds 0 and 1 differ by 0.02 around it
BASE = {"mla": 0.80, "late": 0.78, "concat": 0.79}


def accuracy(method: str, trained: float, tested: float) -> float:
    return BASE[method] - (0.5 if method == "concat" else 0.1) * tested + 0.05 * trained


def made(modalities: tuple[str, ...] = ("audio", "text")) -> Ablation:
    """Rows of three methods at training and test rates 0 and 0.2, and of every subset."""
    rows: list[dict[str, Any]] = []
    for method in BASE:
        for trained in (0.0, 0.2):
            for seed in (0, 1):
                shared = {
                    "dataset": "made", "protocol": "p", "fold": 0, "split": "test", "method": method, "seed": seed,
                    "run": f"{method}-{trained}-{seed}", "selected_on": "val", "train_missing_rate": trained,
                    "train_missing_pattern": "kept_one" if trained else "", "output": "fused", "metric": "accuracy",
                    "num_samples": 50, "smoke": False, "natural_absence": 0.0, "setting": f"{method} @ {trained:g}",
                }  # fmt: skip
                for tested in (0.0, 0.2):
                    value = accuracy(method, trained, tested) + (0.01 if seed else -0.01)
                    drawn = {"missing_rate": tested, "missing_pattern": "kept_one", "value": value}
                    rows += [shared | drawn | {"mask_seed": s} for s in ((0, 1) if tested else (np.nan,))]
                for subset in subsets(modalities):
                    pattern = {"missing_pattern": f"subset:{'+'.join(subset)}", "value": BASE[method] - 0.1 * seed}
                    rows.append(shared | pattern | {"missing_rate": np.nan})
    table = pd.DataFrame(rows).reindex(columns=[*results.COLUMNS, "setting"])
    return Ablation(Path("runs"), table, {}, "mla @ 0", [], 0, grid="missing")


def test_the_papers_table_has_a_row_per_method_and_a_column_per_rate() -> None:
    diagonal, grid, given = missing_tables(made())
    assert diagonal.columns == ["method", "0", "0.2"]
    assert diagonal.rows[0] == ["mla", "80.0 ± 1.4", "79.0 ± 1.4"]
    assert [row[0] for row in diagonal.rows] == list(BASE)
    assert (diagonal.best, diagonal.second) == ({(0, 1), (0, 2)}, {(2, 1), (1, 2)})
    assert "kept_one; each run's mean over 2 mask seeds; ± is the sd over training seeds" in diagonal.notes
    assert "n = 2 training seeds" in diagonal.notes
    assert [row[0] for row in grid.rows] == [f"{m}, trained at {t}" for m in BASE for t in ("0", "0.2")]
    assert grid.rows[5] == ["concat, trained at 0.2", "80.0 ± 1.4", "70.0 ± 1.4"]
    assert given.columns == ["given", *BASE]
    assert [row[0] for row in given.rows] == ["audio", "text", "audio+text"]
    assert given.best == {(r, 1) for r in range(3)} and given.second == {(r, 3) for r in range(3)}


@pytest.mark.parametrize("modalities", [("audio", "text"), ("a", "b", "c", "d")], ids=["upright", "lying"])
def test_figures_are_drawn_and_equal_numbers_give_equal_bytes(tmp_path: Path, modalities: tuple[str, ...]) -> None:
    files = missing_figures(made(modalities).rows, tmp_path)
    kinds = ["missing_rate", "train_test_rates", "subsets"]
    assert [f.name for f in files] == [f"{k}.{s}" for k in kinds for s in ("png", "svg")]
    assert all(f.stat().st_size > 5000 for f in files)
    before = {f.name: f.read_bytes() for f in files}
    assert {f.name: f.read_bytes() for f in missing_figures(made(modalities).rows, tmp_path)} == before


def test_the_grid_trains_four_methods_at_every_rate(mfeat_store) -> None:
    grid = missing_grid(complete(mfeat_recipe(), mfeat_store), [0], [0.0, 0.4])
    assert [s.label for s in grid.settings] == [
        f"{name} @ {rate}" for rate in ("0", "0.4") for name in ("mla", "late", "concat", "modality dropout")
    ]
    assert [s.recipe.train.missing_rate for s in grid.settings] == [0.0] * 4 + [0.4] * 4
    assert [s.recipe.train.modality_dropout for s in grid.settings] == [0, 0, 0, 0.3] * 2
    assert grid.patterns == ("kept_one", "subset")


def test_rates_are_those_the_data_can_meet(mfeat_store, digits_store, data_dir: Path) -> None:
    wanted = (0.0, 0.2, 0.4, 0.6)
    two = mfeat_recipe()
    data = make_session(two, data_dir).data
    events, met = events_and_value(rates_to_meet(wanted, None, data, None))
    assert met == [0.0, 0.2, 0.4]
    assert [e.text for e in events] == ["left out at test time: missing rates 0.6, which these data cannot meet"]
    three = make_session(mfeat_recipe(("mor", "fou", "zer")), data_dir).data
    assert finish(rates_to_meet(wanted, None, three, mfeat_recipe(("mor", "fou", "zer")))) == list(wanted)
    unpaired = make_session(digits_recipe(), data_dir).data  # a recording has nothing else to keep
    assert finish(rates_to_meet(wanted, None, unpaired, digits_recipe())) == [0.0]
    assert finish(rates_to_meet(wanted, None, unpaired, None)) == [0.0, 0.2, 0.4]
    with pytest.raises(MlaError, match=r"`0\.6` cannot be met"):
        finish(rates_to_meet(wanted, [0.6], data, None))


def test_a_rate_that_cannot_be_met_trains_nothing(mfeat_store, data_dir: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Local, "run", lambda *_: pytest.fail("it trained"))
    for preset in (None, "missing"):
        with pytest.raises(MlaError, match=r"`0\.6` cannot be met"):
            finish(ablate(Plan(mfeat_recipe(), [], [0], "0,0.6", [0], preset), data_dir, tmp_path))
    with pytest.raises(MlaError, match="no preset named `mising`"):
        finish(ablate(Plan(mfeat_recipe(), [], [0], None, [0], "mising"), data_dir, tmp_path))
