"""`mla ablate`: one recipe -> a grid of runs -> tables. Finished runs are reused, interrupted ones are resumed."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mla_cli.data.missing import draw_present
from mla_cli.engine import results
from mla_cli.engine.data import Data, complete, ensure_prepared, load_data, open_store, run_fingerprint
from mla_cli.engine.draws import draw_training
from mla_cli.engine.events import Note, Steps
from mla_cli.engine.executor import LOCAL
from mla_cli.engine.grid_plan import GridPlan, make_plan
from mla_cli.engine.grid_runs import threads_of, train_all
from mla_cli.engine.grids import Grid, changed, custom_grid, default_grid
from mla_cli.engine.latest import remember
from mla_cli.engine.loggers import log_finished
from mla_cli.engine.numbers import parse_rates_list
from mla_cli.engine.paired import compare
from mla_cli.engine.presets import COMPLETE, preset_grid
from mla_cli.engine.run import Run, run_name
from mla_cli.engine.stored_grids import grid_facts, stored_rows
from mla_cli.engine.tasks import Executor, Needs
from mla_cli.errors import MlaError
from mla_cli.files import make_folder, sha256, write_sealed
from mla_cli.schema import Recipe

DEFAULT_RATES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
MISSING_RATES = (0.0, 0.2, 0.4, 0.6)  # of the preset `missing`, in training and at test time


@dataclass
class Ablation:
    """What `ablate` made: where it lies and its tidy rows (column `setting` apart, in `settings`)."""

    path: Path
    rows: pd.DataFrame
    labels: dict[str, str]
    full: str
    runs: list[Run]
    reused: int
    failed: list[str] = field(default_factory=list)
    smoke: bool = False
    grid: str = "default"
    runs_of: dict[str, list[Run]] = field(default_factory=dict)  # the finished runs of each setting
    significance: pd.DataFrame | None = None  # `paired.compare` with the full method, where it was asked for


@dataclass
class Plan:
    """What the command asked for. over: (key, values) of the grid's axes; none means the default grid.

    rates: comma-separated test-time missing rates; None: those of 0, 0.1, ... 0.5 that the modalities allow. preset: a
    named grid in place of the default one; with `missing` the rates are those of training too. shard: (i, n), train
    only the i-th of n parts of the runs. dry_run: plan only.
    """

    recipe: Recipe
    over: list[tuple[str, list[Any]]]
    seeds: list[int]
    rates: str | None
    mask_seeds: list[int]
    preset: str | None = None
    significance: bool = False
    shard: tuple[int, int] | None = None
    dry_run: bool = False
    loggers: tuple[str, ...] = ()

    def default_rates(self) -> tuple[float, ...]:
        """Missing rates at test time where none are named; the tables of methods and variants need complete data."""
        if self.preset is None:
            return DEFAULT_RATES
        return MISSING_RATES if self.preset == "missing" else (0.0,)


def make_grid(plan: Plan, recipe: Recipe, train_rates: list[float]) -> Grid:
    """The grid of a plan. Raises MlaError for an unknown preset, or a preset together with axes of one's own."""
    if plan.preset is None:
        return custom_grid(recipe, plan.over, plan.seeds) if plan.over else default_grid(recipe, plan.seeds)
    if plan.over:
        raise MlaError("`--preset` and `--over` exclude each other", "set other keys with `--set key=value`")
    return preset_grid(plan.preset, recipe, plan.seeds, train_rates)


@dataclass
class Pending:
    """No tables: a dry run, or a shard of a grid with runs that other shards have still to finish.

    finished: runs of the whole grid that are, by now. failed: names of this call's runs.
    """

    plan: GridPlan
    dry_run: bool
    finished: int
    failed: list[str]

    def lines(self, whole: str) -> list[str]:
        """What to tell. whole: the command that makes the tables of the whole grid."""
        if self.dry_run:
            return [*self.plan.lines(), *self.plan.listing()]
        return [
            f"{self.finished} of {len(self.plan.jobs)} runs of the grid are finished",
            f"when the other shards have ended, make the tables with: {whole}",
        ]


def ablate(
    plan: Plan, data_dir: Path, run_dir: Path, executor: Executor = LOCAL, device: str = "auto"
) -> Steps[Ablation | Pending]:
    """Say what there is to do, train what is not finished yet, and read the grid; the generator's value is an
    `Ablation`, or `Pending` where there are no tables yet.

    Raises MlaError if every run failed; single failures are listed and the others go on.
    """
    executor.places()  # a cluster that is not there is told before any work
    yield from ensure_prepared(plan.recipe, data_dir)
    store = open_store(plan.recipe, data_dir)
    recipe = complete(plan.recipe, store)
    data = load_data(recipe, store)
    wanted = plan.default_rates()
    given = None if plan.rates is None else parse_rates_list(plan.rates)
    if given and plan.preset in COMPLETE:
        given = sorted({0.0, *given})  # their tables show complete modalities
    rates = yield from rates_to_meet(wanted, given, data, None)
    train_rates = (yield from rates_to_meet(wanted, given, data, recipe)) if plan.preset == "missing" else []
    grid = make_grid(plan, recipe, train_rates)
    mask_seeds = plan.mask_seeds
    store = open_store(grid.settings[0].recipe, data_dir)
    jobs: dict[str, Recipe] = {}
    names: dict[tuple[str, int], str] = {}
    for setting, seed, recipe in grid.recipes():
        name = run_name(complete(recipe, store), run_fingerprint(recipe, store))
        jobs[name], names[setting.label, seed] = recipe, name
    places = executor.places(Needs(threads_of(list(jobs.values())), device))
    work = make_plan(jobs, run_dir, places, plan.shard)
    if plan.dry_run:
        return Pending(work, True, len(work.finished), [])
    for line in work.lines():
        yield Note(line)
    make_folder(run_dir)
    for name in work.finished:
        log_finished(Run(run_dir / name), plan.loggers)
    failed = yield from train_all(work, data_dir, run_dir, executor, device, plan.loggers)
    finished = sum(Run(run_dir / name).state == "finished" for name in jobs)
    if plan.shard and finished < len(jobs):
        return Pending(work, False, finished, failed)
    if len(failed) == len(jobs):
        raise MlaError("no run of the grid finished: " + "; ".join(failed), "see the errors above")
    labels, facts = setting_labels(grid, names, failed), grid_facts(grid, names, rates, mask_seeds, failed)
    table = stored_rows(facts, run_dir)
    key = json.dumps([grid.name, sorted(jobs), list(rates), list(mask_seeds)])
    path = make_folder(
        run_dir / f"ablate-{grid.settings[0].recipe.name}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    )
    tidy = table[list(results.COLUMNS)].drop_duplicates()
    results.write_csv(tidy, path / "results.csv")
    first = names[grid.full, grid.seeds[0]]
    if (run_dir / first).is_dir() and Run(run_dir / first).state == "finished":
        remember(run_dir, first)  # `mla eval` after an ablation takes the full method's first seed
    done = [Run(run_dir / name) for name in jobs if name not in failed]
    runs_of = {
        setting.label: [Run(run_dir / n) for seed in grid.seeds if (n := names[setting.label, seed]) not in failed]
        for setting in grid.settings
    }
    significance, smoke = None, bool(table["smoke"].any())
    (path / "significance.csv").unlink(missing_ok=True)  # of an earlier call
    if plan.significance and not smoke:
        fused = {s.label: s.rule for s in grid.settings if s.recipe.method.name != "unimodal"}
        significance = compare({label: runs_of[label] for label in fused if runs_of[label]}, fused, grid.full)
        results.write_csv(significance, path / "significance.csv")
    digests = {n: sha256(path / n) for n in ("results.csv", "significance.csv") if (path / n).is_file()}
    settings = {"settings": labels, "seeds": grid.seeds, "runs": sorted(jobs), "grid": facts, "files": digests}
    write_sealed(path / "settings.json", settings)
    return Ablation(
        path=path,
        rows=table,
        labels=labels,
        full=grid.full,
        runs=done,
        reused=len(work.finished),
        failed=failed,
        smoke=smoke,
        grid=grid.name,
        runs_of=runs_of,
        significance=significance,
    )


def rates_to_meet(
    wanted: Sequence[float], given: list[float] | None, data: Data, recipe: Recipe | None
) -> Steps[list[float]]:
    """Those of the rates wanted by default that the data can meet, the others named; or the rates given, all of them.

    At test time by `kept_one`, or with a recipe in training by its own pattern. Raises MlaError, before anything
    trains, if a given rate cannot be met.
    """
    met, unmet = [], []
    for rate in wanted if given is None else given:
        try:
            if recipe is not None:
                draw_training(changed(recipe, train__missing_rate=rate), data.splits["train"])
            else:
                test = data.splits["test"]
                some = test.take(np.flatnonzero(test.present.any(1)))
                names = some.modalities
                draw_present(some.present, some.ids, names, pattern="kept_one", rate=rate, seed=0, split="test")
        except MlaError:
            if given is not None:
                raise
            unmet.append(rate)
        else:
            met.append(rate)
    if unmet:
        where = "in training" if recipe is not None else "at test time"
        yield Note(f"left out {where}: missing rates {', '.join(map(str, unmet))}, which these data cannot meet")
    return met


def setting_labels(grid: Grid, names: dict[tuple[str, int], str], failed: list[str]) -> dict[str, str]:
    """Every setting that has a finished run, and its switches in one line."""
    labels = {}
    for setting, seed, recipe in grid.recipes():
        if names[setting.label, seed] in failed:
            continue
        labels[setting.label] = describe(recipe)
        if grid.unimodal_from_late and recipe.method.name == "late":
            same = "part of `late`, which is bit-identical to the run alone (select_on: last)"
            labels |= {f"unimodal {modality}": same for modality in recipe.dataset.modalities or []}
    return labels


def describe(recipe: Recipe) -> str:
    """A setting's switches in one line."""
    hgm = f", hgm={recipe.method.hgm}" if recipe.method.name == "mla" else ""
    return f"{recipe.method.name}{hgm}, {recipe.train.epochs} epochs, select_on={recipe.train.select_on}"
