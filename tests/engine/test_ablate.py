"""`ablate`: a grid of runs, trained in workers, reused, and read into tables. One test starts real worker processes."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pytest
from command_line import mla
from tiny import events_and_value, finish, mfeat_recipe, run_bytes, trained

from mla_cli import tables
from mla_cli.engine.ablate import Ablation, Pending, Plan, ablate
from mla_cli.engine.data import complete
from mla_cli.engine.events import Note, Progress
from mla_cli.engine.executor import Local
from mla_cli.engine.grids import custom_grid, default_grid, parse_over
from mla_cli.engine.latest import latest
from mla_cli.engine.results import COLUMNS, over_seeds
from mla_cli.engine.run import Held, Run
from mla_cli.engine.train import train
from mla_cli.errors import MlaError
from mla_cli.holders import note_of, this_process
from mla_cli.locks import FolderLock
from mla_cli.recipe import dump_yaml


def plan(over: list[str] = (), seeds: tuple[int, ...] = (0, 1), rates: str | None = "0,0.3", **changes) -> Plan:
    return Plan(mfeat_recipe(**changes), [parse_over(text) for text in over], list(seeds), rates, [0, 1])


# ------------------------------------------------------------ grids


def test_the_default_grid_has_the_full_method_first_and_trains_no_run_twice(mfeat_store) -> None:
    recipe = complete(mfeat_recipe(), mfeat_store)
    grid = default_grid(recipe, [0, 1, 2])
    assert [(s.label, s.recipe.method.name, s.recipe.method.hgm, s.rule) for s in grid.settings] == [
        ("MLA (HGM, DF)", "mla", "rls", "entropy"),
        ("MLA without DF", "mla", "rls", "uniform"),
        ("MLA without HGM", "mla", "off", "entropy"),
        ("MLA without HGM, DF", "mla", "off", "uniform"),
        ("concat", "concat", "off", "native"),
        ("late", "late", "off", "native"),
        ("unimodal mor", "unimodal", "off", "native"),
        ("unimodal fou", "unimodal", "off", "native"),
    ]
    assert grid.settings[0].recipe == grid.settings[1].recipe  # DF costs no training
    assert [s.recipe.method.options() for s in grid.settings[-2:]] == [
        {"unimodal": {"modality": "mor"}},
        {"unimodal": {"modality": "fou"}},
    ]
    assert len(grid.recipes()) == 24
    assert {recipe.seed for _, _, recipe in grid.recipes()} == {0, 1, 2}


def test_unimodal_rows_come_from_late_only_where_that_is_provably_the_same(mfeat_store) -> None:
    last = default_grid(complete(mfeat_recipe(train={"select_on": "last"}), mfeat_store), [0])
    assert last.unimodal_from_late
    assert "unimodal" not in {s.recipe.method.name for s in last.settings}
    assert not default_grid(complete(mfeat_recipe(), mfeat_store), [0]).unimodal_from_late


def test_the_default_grid_keeps_the_recipes_variant(mfeat_store) -> None:
    for given, used in (("released", "released"), ("off", "rls")):
        grid = default_grid(complete(mfeat_recipe(method={"hgm": given}), mfeat_store), [0])
        assert grid.settings[0].recipe.method.hgm == used
        assert grid.settings[2].recipe.method.hgm == "off"


def test_a_grid_of_ones_own_is_the_product_of_its_axes(mfeat_store) -> None:
    axes = [("method.hgm", ["off", "rls"]), ("train.lr", [0.1, 0.2])]
    grid = custom_grid(complete(mfeat_recipe(), mfeat_store), axes, [5])
    assert [s.label for s in grid.settings] == [
        "hgm=off, lr=0.1",
        "hgm=off, lr=0.2",
        "hgm=rls, lr=0.1",
        "hgm=rls, lr=0.2",
    ]
    assert [(s.recipe.method.hgm, s.recipe.train.lr) for s in grid.settings][1] == ("off", 0.2)
    assert {s.rule for s in grid.settings} == {"entropy"}
    rules = custom_grid(complete(mfeat_recipe(), mfeat_store), [("fusion.rule", ["uniform", "energy"])], [0])
    assert [s.rule for s in rules.settings] == ["uniform", "energy"]


def test_axes_are_validated_before_anything_trains(mfeat_store, data_dir: Path, tmp_path: Path, in_process) -> None:
    with pytest.raises(MlaError, match=r"train\.epocs"):
        finish(ablate(plan(["train.epocs=1,2"]), data_dir, tmp_path))
    assert not in_process


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("method.hgm=off,rls", ("method.hgm", [False, "rls"])),  # the recipe takes false for `off`
        ("train.lr=1e-3,0.01", ("train.lr", [0.001, 0.01])),
        (" seed =1,2", ("seed", [1, 2])),
    ],
)
def test_axes_are_read_from_the_command_line(text: str, expected: tuple) -> None:
    assert parse_over(text) == expected


@pytest.mark.parametrize("text", ["method.hgm", "method.hgm="])
def test_an_axis_without_values_is_refused(text: str) -> None:
    with pytest.raises(MlaError, match="is not `key=value,value`"):
        parse_over(text)


# ------------------------------------------------------------ runs


@pytest.fixture
def ablation(mfeat_store, data_dir: Path, tmp_path: Path, in_process: list[str]) -> Ablation:
    """HGM off and on, two seeds, missing rates 0 and 0.3."""
    done: Ablation = finish(ablate(plan(["method.hgm=off,rls"]), data_dir, tmp_path))
    return done


def test_a_grid_is_trained_and_read(ablation: Ablation, tmp_path: Path, in_process: list[str]) -> None:
    assert len(in_process) == 4
    assert (ablation.reused, ablation.failed, ablation.smoke) == (0, [], False)
    assert {run.state for run in ablation.runs} == {"finished"}
    assert ablation.full == "hgm=off"
    rows = ablation.rows
    fused = rows[(rows["output"] == "fused") & (rows["metric"] == "accuracy")]
    counts = fused.groupby(["setting", "seed", "missing_rate"]).size().to_dict()
    assert counts == {(f"hgm={h}", s, r): n for h in ("off", "rls") for s in (0, 1) for r, n in ((0.0, 1), (0.3, 2))}
    stored = pd.read_csv(ablation.path / "results.csv")
    assert tuple(stored.columns) == COLUMNS
    assert sorted(stored["value"]) == sorted(rows["value"])
    settings = json.loads((ablation.path / "settings.json").read_text())
    assert settings["seeds"] == [0, 1]
    assert sorted(settings["runs"]) == sorted(run.name for run in ablation.runs)
    assert latest(tmp_path) == fused[(fused["setting"] == "hgm=off") & (fused["seed"] == 0)]["run"].iloc[0]


def test_the_second_call_reuses_everything(
    ablation: Ablation, data_dir: Path, tmp_path: Path, in_process: list[str]
) -> None:
    in_process.clear()
    events, again = events_and_value(ablate(plan(["method.hgm=off,rls"]), data_dir, tmp_path))
    assert not in_process
    assert again.reused == 4
    assert again.path == ablation.path
    pd.testing.assert_frame_equal(again.rows, ablation.rows)
    assert "4 runs, 4 finished already, 0 to do" in [e.text for e in events if isinstance(e, Note)]
    more = finish(ablate(plan(["method.hgm=off,rls"], seeds=(0, 1, 2)), data_dir, tmp_path))
    assert len(in_process) == 2  # the new seed's
    assert more.path != ablation.path


def test_a_run_that_fails_is_reported_and_the_others_go_on(
    ablation: Ablation, data_dir: Path, tmp_path: Path, in_process: list[str]
) -> None:
    in_process.clear()
    events, found = events_and_value(ablate(plan(["train.lr=1e30,0.05"]), data_dir, tmp_path))
    assert len(in_process) == 2  # lr 0.05 is the recipe's own, trained before
    assert len(found.failed) == 2
    assert {run.state for run in found.runs} == {"finished"}
    assert set(found.rows["setting"]) == {"lr=0.05"}
    warnings = [e.text for e in events if isinstance(e, Note) and e.warning]
    assert any("failed: loss of" in text for text in warnings)
    assert {Run(tmp_path / name).state for name in found.failed} == {"failed"}
    assert latest(tmp_path) is not None
    assert tables.ablation_tables(found)  # what is left makes a table
    in_process.clear()
    again = finish(ablate(plan(["train.lr=1e30,0.05"]), data_dir, tmp_path))
    assert len(in_process) == 2  # failed runs are tried again
    assert again.failed == found.failed


def test_if_every_run_fails_there_is_no_table(mfeat_store, data_dir: Path, tmp_path: Path, in_process) -> None:
    with pytest.raises(MlaError, match="no run of the grid finished"):
        finish(ablate(plan(["train.lr=1e30"], seeds=(0,)), data_dir, tmp_path))


def test_an_interrupted_run_is_taken_up(mfeat_store, data_dir: Path, tmp_path: Path, in_process) -> None:
    from mla_cli.engine.events import Epoch
    from mla_cli.engine.train import train

    steps = train(mfeat_recipe(), data_dir, tmp_path, "cpu")
    next(e for e in steps if isinstance(e, Epoch))
    steps.close()
    found = finish(ablate(plan(["method.hgm=rls"], seeds=(0,)), data_dir, tmp_path))
    whole = trained(mfeat_recipe(), data_dir, tmp_path / "whole")
    (run,) = found.runs
    assert run.predictions.read_bytes() == whole.predictions.read_bytes()


def test_progress_counts_epochs(mfeat_store, data_dir: Path, tmp_path: Path, in_process) -> None:
    events, _ = events_and_value(ablate(plan(["method.hgm=off,rls"], seeds=(0,)), data_dir, tmp_path))
    steps = [e for e in events if isinstance(e, Progress) and e.what == "epochs"]
    assert {e.total for e in steps} == {4}
    assert [e.done for e in steps] == sorted(e.done for e in steps)
    assert (steps[0].done, steps[-1].done) == (0, 4)


def test_the_default_grid_from_training_to_tables(mfeat_store, data_dir: Path, tmp_path: Path, in_process) -> None:
    changes = {"train": {"select_on": "last", "epochs": 1}}
    found = finish(ablate(plan(seeds=(0, 1), rates=None, **changes), data_dir, tmp_path))
    assert sorted(in_process) == sorted(["mla", "mla", "concat", "late"] * 2)  # eight settings, eight runs
    rows = found.rows[found.rows["metric"] == "accuracy"]
    assert set(rows["missing_rate"]) == {0.0, 0.1, 0.2, 0.3, 0.4, 0.5}
    late = rows[(rows["setting"] == "late") & (rows["output"] == "mor")].set_index("seed")["value"]
    mor = rows[(rows["setting"] == "unimodal mor") & (rows["output"] == "fused")].set_index("seed")["value"]
    pd.testing.assert_series_equal(late, mor)
    assert "bit-identical" in found.labels["unimodal mor"]
    stored = pd.read_csv(found.path / "results.csv")
    assert set(stored["method"]) == {"mla", "concat", "late"}
    made = tables.ablation_tables(found)
    assert [row[0] for row in made[0].rows] == list(found.labels)
    assert len(made) == 2


def test_unimodal_runs_are_trained_where_val_selects(mfeat_store, data_dir: Path, tmp_path: Path, in_process) -> None:
    found = finish(ablate(plan(seeds=(0,), rates="0,0.2", train={"epochs": 1}), data_dir, tmp_path))
    assert sorted(in_process) == ["concat", "late", "mla", "mla", "unimodal", "unimodal"]
    rows = found.rows[found.rows["setting"] == "unimodal fou"]
    assert set(rows["output"]) == {"fou", "fused"}
    assert set(rows["missing_rate"]) == {0.0}  # nothing of one modality can be missing


def test_rows_of_a_smoke_run_are_refused_by_tables(mfeat_store, data_dir: Path, tmp_path: Path, in_process) -> None:
    smoke = plan(["method.hgm=off,rls"], seeds=(0,), train={"max_rounds": 2, "epochs": 1})
    found = finish(ablate(smoke, data_dir, tmp_path))
    assert found.smoke
    assert found.rows["smoke"].all()
    with pytest.raises(MlaError, match="smoke run"):
        over_seeds(found.rows, by=["setting"])
    (table,) = tables.ablation_tables(found)  # says what ran, and no number
    assert "no results" in table.title
    assert not any(character.isdigit() for row in table.rows for character in row[1].replace("1 epochs", ""))


def test_real_workers_train_and_report(mfeat_store, data_dir: Path, tmp_path: Path) -> None:
    """The same as in this process, through one worker: two runs, one of which fails."""
    events, found = events_and_value(ablate(plan(["train.lr=0.05,1e30"], seeds=(0,)), data_dir, tmp_path, Local(1)))
    assert len(found.failed) == 1
    (run,) = found.runs
    whole = trained(mfeat_recipe(), data_dir, tmp_path / "here")
    assert run.name == whole.name
    assert run.predictions.read_bytes() == whole.predictions.read_bytes()  # one thread here and there
    assert any(isinstance(e, Progress) and e.done == e.total for e in events)


@pytest.mark.parametrize(
    ("over", "rates", "message"),
    [
        (["train.lr=0.1,0.01", "train.lr=0.2"], None, "`--over train.lr` is given twice"),
        (["method.hgm=off,rls,off"], None, "setting `hgm=off` stands twice in the grid"),
        (["seed=1,2"], None, "`seed` is no axis of the grid"),
        (["dataset.fold=0,1"], None, "`--over dataset.fold` would set different test items"),
        (["train.select_on=val,last"], None, "`--over train.select_on` would set different test items or selection"),
        ([], "0,0.9", "missing rate `0.9` cannot be met: it removes 173 of the 192 entries"),
    ],
)
def test_what_would_lose_rows_is_refused_before_anything_is_trained(
    mfeat_store, data_dir: Path, tmp_path: Path, in_process: list[str], over: list[str], rates: str, message: str
) -> None:
    with pytest.raises(MlaError) as error:
        finish(ablate(plan(over, rates=rates), data_dir, tmp_path))
    assert error.value.message.startswith(message)
    assert error.value.hint
    assert in_process == []


# ------------------------------------------------------------ parts of a grid


def test_a_dry_run_plans_and_trains_nothing(mfeat_store, data_dir: Path, tmp_path: Path, in_process: list[str]) -> None:
    asked = replace(plan(["method.hgm=off,rls"]), dry_run=True)
    planned = finish(ablate(asked, data_dir, tmp_path / "runs"))
    assert isinstance(planned, Pending)
    assert in_process == []
    assert not (tmp_path / "runs").exists()
    lines = planned.lines("mla ablate")
    assert lines[0] == "4 runs, 0 finished already, 4 to do"
    assert lines[1].startswith("estimated time: told after the first run (")
    assert len(lines) == 6 and all(line.startswith("  to do     tiny-mla-s") for line in lines[2:])


def test_shards_train_their_part_and_the_last_one_makes_the_tables(
    mfeat_store, data_dir: Path, tmp_path: Path, in_process: list[str]
) -> None:
    grid = plan(["method.hgm=off,rls", "train.lr=0.05,0.04"], seeds=(0,))
    for part, trained_then in ((2, 1), (1, 3)):
        done = finish(ablate(replace(grid, shard=(part, 3)), data_dir, tmp_path))
        assert isinstance(done, Pending)
        assert (done.finished, len(in_process), done.failed) == (trained_then, trained_then, [])
        assert done.lines("mla ablate") == [
            f"{trained_then} of 4 runs of the grid are finished",
            "when the other shards have ended, make the tables with: mla ablate",
        ]
        assert not list(tmp_path.glob("ablate-*"))
    last = finish(ablate(replace(grid, shard=(3, 3)), data_dir, tmp_path))
    assert isinstance(last, Ablation)
    assert len(in_process) == 4
    whole = finish(ablate(grid, data_dir, tmp_path))
    assert len(in_process) == 4  # nothing was left to do
    assert whole.path == last.path


def test_a_shard_says_the_command_that_makes_the_tables(
    mfeat_store, data_dir: Path, tmp_path: Path, in_process: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = ["--data-dir", str(data_dir), "--run-dir", str(tmp_path)]
    content = dump_yaml(mfeat_recipe())
    (tmp_path / "tiny.yaml").write_text(content)
    words = ["ablate", "--recipe", str(tmp_path / "tiny.yaml"), "--over", "train.lr=0.05,0.04", "--seeds", "0"]
    for shard in (["--shard", "1/2"], ["--shard=1/2"]):
        monkeypatch.setattr("sys.argv", ["mla", *words, *shard, *folders])
        found = mla(*words, *shard, *folders)
        assert (found.code, len(in_process)) == (0, 1)
        assert found.stdout == (
            "1 of 2 runs of the grid are finished\n"
            f"when the other shards have ended, make the tables with: mla {' '.join([*words, *folders])}\n"
        )
    wrong = mla(*words, "--shard", "3/2", *folders)
    assert (wrong.code, wrong.stdout) == (1, "")
    assert "error: `--shard 3/2` is no part of a whole\nhint: write i/n" in wrong.stderr


# ------------------------------------------------------------ two at once


def test_a_run_of_another_process_is_left_to_it_then_waited_for(
    mfeat_store, data_dir: Path, tmp_path: Path, in_process: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = plan(["train.lr=0.05,0.04"], seeds=(0,))
    first, _ = finish(ablate(replace(grid, dry_run=True), data_dir, tmp_path)).plan.jobs
    lock = FolderLock(tmp_path / first)
    assert lock.taken()
    monkeypatch.setattr("time.sleep", lambda seconds: lock.release())  # the other one ends while we wait
    events, done = events_and_value(ablate(grid, data_dir, tmp_path))
    assert len(in_process) == 3  # the first, the other, the first again
    texts = [e.text for e in events if isinstance(e, Note)]
    assert f"{first} is being trained by another process: left to that one" in texts
    assert texts.index(f"{first} finished") == len(texts) - 1
    assert {run.state for run in done.runs} == {"finished"}


def test_a_run_held_on_another_machine_is_waited_for_with_a_warning(
    mfeat_store, data_dir: Path, tmp_path: Path, in_process: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = plan(["train.lr=0.05,0.04"], seeds=(0,))
    first, _ = finish(ablate(replace(grid, dry_run=True), data_dir, tmp_path)).plan.jobs
    (tmp_path / first).mkdir()
    note = note_of(tmp_path / first)
    note.write_text(json.dumps(asdict(replace(this_process(), pid=77, host="node7", boot="another"))))
    monkeypatch.setattr("time.sleep", lambda seconds: note.unlink())  # as the warning says
    events, done = events_and_value(ablate(grid, data_dir, tmp_path))
    (warning,) = [e.text for e in events if isinstance(e, Note) and e.warning]
    assert warning.startswith(f"{first}: held by process 77 on node7 since ")
    assert f"rm {note}" in warning
    assert {run.state for run in done.runs} == {"finished"}


def test_a_lock_that_a_killed_process_left_is_taken_over_with_a_note(
    mfeat_store, data_dir: Path, tmp_path: Path
) -> None:
    run = trained(mfeat_recipe(train={"epochs": 1}), data_dir, tmp_path)
    before = run_bytes(run)
    gone = replace(this_process(), pid=2**22 + 1, command="mla train --seed 7")
    note_of(run.path).write_text(json.dumps(asdict(gone)))
    events, _ = events_and_value(train(run.recipe(), data_dir, tmp_path, "cpu", force=True))
    (text,) = [event.text for event in events if isinstance(event, Note) and "taken over" in event.text]
    assert text.startswith(f"{run.path} was left by a process that is gone (process {2**22 + 1} on ")
    assert "mla train --seed 7" in text
    assert run_bytes(run) == before
    assert not note_of(run.path).exists()


def test_training_a_run_that_another_process_trains_is_an_error(mfeat_store, data_dir: Path, tmp_path: Path) -> None:
    run = trained(mfeat_recipe(), data_dir, tmp_path)
    told = pytest.raises(Held, match=r"is being trained by another process \(process \d+ on ")
    with run.hold(), told as error:
        trained(mfeat_recipe(), data_dir, tmp_path, force=True)
    assert error.value.hint
    assert run.state == "finished"
    again = trained(mfeat_recipe(), data_dir, tmp_path, force=True)
    assert again.state == "finished"
