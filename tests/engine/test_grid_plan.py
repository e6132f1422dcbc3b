"""The plan of a grid: what it says, where its time comes from, and its shards."""

import doctest
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import mfeat_recipe

from mla_cli.engine import grid_plan, numbers
from mla_cli.engine.grid_plan import make_plan, parse_shard, part_of
from mla_cli.engine.run import Run
from mla_cli.engine.tasks import Places
from mla_cli.errors import MlaError
from mla_cli.files import write_json, write_text
from mla_cli.recipe import dump_yaml
from mla_cli.schema import Recipe

TWO = Places(2, "2 cores")


def made(folder: Path, recipe: Recipe, state: str, seconds: list[float]) -> None:
    """A run folder with a state and the times of its epochs."""
    folder.mkdir(parents=True)
    write_json(folder / "run.json", {"state": state})
    write_text(folder / "recipe.yaml", dump_yaml(recipe))
    rows = [json.dumps({"epoch": i + 1, "all": s}) + "\n" for i, s in enumerate(seconds)]
    for file in ("timing.jsonl", "history.jsonl"):
        write_text(folder / file, "".join(rows))


@given(st.integers(0, 30), st.integers(1, 12))
def test_shards_share_the_grid_without_rest_or_double(runs: int, shards: int) -> None:
    names = [f"run{i}" for i in range(runs)]
    parts = [part_of(names, (i, shards)) for i in range(1, shards + 1)]
    assert sorted(name for part in parts for name in part) == sorted(names)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("text", ["0/2", "3/2", "1/0", "1", "a/b", "1/2/3", "-1/2", "1/2.0", "", "１/２"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(MlaError) as error:
        parse_shard(text)
    assert error.value.message == f"`--shard {text}` is no part of a whole"
    assert "1/4" in error.value.hint
    assert parse_shard(" 2/2 ") == (2, 2)


def test_the_plan_counts_runs_by_state_and_estimates_from_the_same_method(tmp_path: Path) -> None:
    mla = mfeat_recipe(train={"epochs": 10})
    late = mfeat_recipe(method={"name": "late", "hgm": "off"}, train={"epochs": 10})
    jobs = {"mla0": mla, "mla1": mla, "mla2": mla, "late0": late, "late1": late, "late2": late}
    made(tmp_path / "mla0", mla, "finished", [2.0] * 10)
    made(tmp_path / "mla1", mla, "running", [2.0] * 4)
    made(tmp_path / "late0", late, "finished", [1.0] * 10)
    made(tmp_path / "late1", late, "failed", [1.0])
    plan = make_plan(jobs, tmp_path, TWO, None)
    assert plan.seconds == (6 * 2 + 10 * 2 + 10 + 10) / 2
    assert plan.lines() == [
        "6 runs, 2 finished already, 4 to do (1 of them begun)",
        "estimated time: about 26 s (2 runs at a time on 2 cores; from 2 finished runs of this grid)",
    ]
    assert plan.listing()[:3] == ["  finished  mla0", "  begun     mla1", "  to do     mla2"]
    half = make_plan(jobs, tmp_path, TWO, (1, 2))
    assert half.mine == ["mla0", "mla2", "late1"]
    assert half.lines()[0] == ("6 runs, 2 finished already, shard 1/2 has 3 of them, 1 of these finished, 2 to do")


def test_the_time_comes_from_the_recipes_other_runs_or_from_the_first_one(tmp_path: Path) -> None:
    recipe = mfeat_recipe(train={"epochs": 10})
    plan = make_plan({"a": recipe, "b": recipe, "c": recipe}, tmp_path, TWO, None)
    assert plan.seconds is None
    assert plan.lines()[1] == "estimated time: told after the first run (2 runs at a time on 2 cores)"
    made(tmp_path / "a", recipe, "finished", [30.0] * 10)
    plan.learn(Run(tmp_path / "a"), ["b", "c"])
    assert plan.time_line() == (
        "estimated time: about 5 min (2 runs at a time on 2 cores; from the first finished run)"
    )
    made(tmp_path / "tiny-mla-s7-f0-00000000", recipe, "finished", [3.0] * 10)
    made(tmp_path / "tiny-mla-s8-f0-00000000", recipe, "running", [90.0])
    other = make_plan({"b": recipe}, tmp_path, TWO, None)
    assert other.lines()[1] == (
        "estimated time: about 30 s (1 run at a time on 2 cores; from 1 finished run of recipe tiny)"
    )


def test_a_damaged_run_does_not_spoil_the_plan(tmp_path: Path) -> None:
    recipe = mfeat_recipe()
    made(tmp_path / "a", recipe, "running", [1.0])
    (tmp_path / "a" / "history.jsonl").write_text("not a line\n")
    assert make_plan({"a": recipe}, tmp_path, TWO, None).epochs_left == {"a": 2}


@pytest.mark.parametrize("module", [grid_plan, numbers])
def test_examples_of_docstrings_hold(module) -> None:
    found = doctest.testmod(module)
    assert found.attempted and not found.failed
