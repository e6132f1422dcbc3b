"""The plan of a grid before anything trains: its runs, what is done of them, how long the rest will take; and the part
of it that one job of a batch system does (`--shard 2/5`)."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from mla_cli.engine.numbers import counted, duration
from mla_cli.engine.run import Run
from mla_cli.engine.tasks import Places
from mla_cli.errors import MlaError
from mla_cli.schema import Recipe

RECENT = 50  # runs of the same recipe outside the grid that are looked at for their times


@dataclass
class GridPlan:
    """What a call of `mla ablate` will do.

    jobs: run name -> recipe, the whole grid in its order. states: of each run, see `Run.state`. mine: names of the runs
    of this call's shard. epochs_left: of each run that is to do. places: how many run at a time. seconds: about how
    long it will take; None where no run tells yet. basis: where that comes from.
    """

    jobs: dict[str, Recipe]
    states: dict[str, str]
    mine: list[str]
    places: Places
    shard: tuple[int, int] | None = None
    epochs_left: dict[str, int] = field(default_factory=dict)
    seconds: float | None = None
    basis: str = ""

    @property
    def finished(self) -> list[str]:
        return [name for name, state in self.states.items() if state == "finished"]

    @property
    def todo(self) -> list[str]:
        return list(self.epochs_left)

    def lines(self) -> list[str]:
        """The plan in words."""
        begun = [name for name in self.todo if self.states[name] == "running"]
        parts = [f"{len(self.jobs)} runs", f"{len(self.finished)} finished already"]
        if self.shard:
            part, of = self.shard
            done = sum(self.states[name] == "finished" for name in self.mine)
            parts += [f"shard {part}/{of} has {len(self.mine)} of them, {done} of these finished"]
        parts.append(f"{len(self.todo)} to do" + (f" ({len(begun)} of them begun)" if begun else ""))
        return [", ".join(parts), *([self.time_line()] if self.todo else [])]

    def time_line(self) -> str:
        together = min(self.places.count, len(self.todo))
        how = f"{counted(together, 'run')} at a time on {self.places.where}"
        if self.seconds is None:
            return f"estimated time: told after the first run ({how})"
        return f"estimated time: about {duration(self.seconds)} ({how}; {self.basis})"

    def learn(self, run: Run, left: Sequence[str]) -> None:
        """Estimate the time from the first run that finished, for those that are left."""
        self.epochs_left = {name: self.epochs_left[name] for name in left}
        estimate(self, [run], "from the first finished run")

    def listing(self) -> list[str]:
        """One line for each run of this call: its state and name."""
        words = {"finished": "finished", "running": "begun", "failed": "failed"}
        return [f"  {words.get(self.states[name], 'to do'):<9} {name}" for name in self.mine]


def make_plan(jobs: Mapping[str, Recipe], run_dir: Path, places: Places, shard: tuple[int, int] | None) -> GridPlan:
    """The plan for a grid of runs (name -> recipe, complete) below `run_dir`.

    The time is estimated from the seconds an epoch took in finished runs of the same method, in this grid or else in
    other runs of the same recipe.
    """
    states = {name: Run(run_dir / name).state for name in jobs}
    mine = part_of(list(jobs), shard)
    plan = GridPlan(dict(jobs), states, mine, places, shard)
    for name in mine:
        if states[name] != "finished":
            done = 0
            if states[name] == "running":
                with suppress(MlaError):  # damaged: training will say so, of this run alone
                    done = len(Run(run_dir / name).history())
            plan.epochs_left[name] = max(0, jobs[name].train.epochs - done)
    own = [Run(run_dir / name) for name in plan.finished]
    estimate(plan, own, f"from {counted(len(own), 'finished run')} of this grid")
    if plan.seconds is None and plan.todo:
        recipe = next(iter(jobs.values())).name
        others = [Run(path.parent) for path in run_dir.glob(f"{recipe}-*/timing.jsonl") if path.parent.name not in jobs]
        others = [run for run in others[:RECENT] if run.state == "finished"]
        estimate(plan, others, f"from {counted(len(others), 'finished run')} of recipe {recipe}")
    return plan


def estimate(plan: GridPlan, runs: Sequence[Run], basis: str) -> None:
    """Set the time from the epochs of finished runs, those of the same method first; without any it stays unknown."""
    paces: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        seconds = [row["all"] for row in run.history("timing.jsonl") if isinstance(row.get("all"), int | float)]
        if seconds:
            paces.setdefault(kind_of(run.recipe()), []).append(sum(seconds) / len(seconds))
    if not paces:
        return
    every = [pace for found in paces.values() for pace in found]
    taken = []
    for name, epochs in plan.epochs_left.items():
        pace = paces.get(kind_of(plan.jobs[name]), every)
        taken.append(epochs * sum(pace) / len(pace))
    plan.seconds, plan.basis = max(sum(taken) / plan.places.count, max(taken, default=0.0)), basis


def kind_of(recipe: Recipe) -> tuple[str, str]:
    """Runs of one kind take about equally long."""
    return recipe.method.name, recipe.method.hgm


def part_of(names: Sequence[str], shard: tuple[int, int] | None) -> list[str]:
    """The runs of one shard: every n-th of the grid's order, whatever is finished. Together the shards are the grid.

    >>> part_of(["a", "b", "c", "d", "e"], (2, 2)), part_of(["a"], None)
    (['b', 'd'], ['a'])
    """
    return list(names) if shard is None else list(names)[shard[0] - 1 :: shard[1]]


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """`2/5` as (2, 5): the second of five shards. Raises MlaError for anything else.

    >>> parse_shard("2/5"), parse_shard(None)
    ((2, 5), None)
    """
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]+)/([0-9]+)", text.strip())
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise MlaError(
            f"`--shard {text}` is no part of a whole", "write i/n with i from 1 to n, for example `--shard 1/4`"
        )
    return int(found[1]), int(found[2])
