"""`mla status`: what lies under the run and data folders, and what continues the unfinished. Reads only; no torch."""

import contextlib
import csv
import os
import platform
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mla_cli import registry
from mla_cli.engine.going_on import train_command
from mla_cli.engine.run import Run
from mla_cli.errors import MlaError
from mla_cli.files import read_sealed
from mla_cli.locks import FolderLock

# In the order in which they are listed: what asks for something stands last, where a terminal shows it.
STATES = ("finished", "running", "running elsewhere", "interrupted", "failed", "damaged")


@dataclass(frozen=True)
class RunStatus:
    """A run. epoch of epochs (None: not known); val, test: fused accuracy in [0, 1]; age: seconds since it changed.

    note: the error of a failed run, what is damaged, who works on it, or that it was a smoke run. command: what
    continues it, "" for nothing.
    """

    run: str
    state: str
    epoch: int | None
    epochs: int | None
    val: float | None
    test: float | None
    age: float
    note: str
    command: str


@dataclass(frozen=True)
class StoreStatus:
    """A prepared set, or the folder of one that is not ready. shards: finished ones of a half-built set."""

    store: str
    state: str
    dataset: str
    samples: int | None
    fingerprint: str
    bytes: int
    shards: int | None
    age: float
    note: str
    command: str


@dataclass
class Status:
    """All runs and prepared sets, sorted by state and name."""

    run_dir: Path
    data_dir: Path
    runs: list[RunStatus]
    stores: list[StoreStatus]


def status(run_dir: Path, data_dir: Path) -> Status:
    """Look at everything under two folders, which need not be there. What cannot be read is listed as damaged."""
    now = time.time()
    unreadable: list[OSError] = []
    runs = [run_status(path, run_dir, now) for path in run_folders(run_dir, unreadable)]
    runs += [unreadable_run(error) for error in unreadable if not isinstance(error, FileNotFoundError)]
    stores = [store_status(path, now) for path in store_folders(data_dir)]
    runs.sort(key=lambda r: (STATES.index(r.state), r.run))
    stores.sort(key=lambda s: (s.state != "prepared", s.store))
    return Status(run_dir, data_dir, runs, stores)


# ---------------------------------------------------------------- runs


def run_folders(run_dir: Path, unreadable: list[OSError]) -> Iterator[Path]:
    """Every folder below `run_dir`, at any depth, that was claimed as a run; links are not followed.

    unreadable: gets the errors of folders that cannot be listed.
    """
    for folder, names, files in os.walk(run_dir, onerror=unreadable.append):
        if "run.json" in files or ("recipe.yaml" in files and "checkpoints" in names):
            names.clear()  # a run holds no runs
            yield Path(folder)


def run_status(path: Path, run_dir: Path, now: float) -> RunStatus:
    """One run as its files tell, whatever they hold."""
    run, name = Run(path), path.relative_to(run_dir).as_posix()
    age = max(0.0, now - last_change(path, ("run.json", "history.jsonl", "timing.jsonl", "recipe.yaml")))
    epoch = epochs = None
    try:
        info = run.info()
        state, note = state_of(run, info)
        epoch = len(run.history())
        if state == "finished":
            epochs = epoch
            val, test, smoke = fused_accuracies(path)
            note = "a smoke run, its numbers mean nothing" if smoke else note
            return RunStatus(name, state, epoch, epochs, val, test, age, note, "")
        epochs = info["epochs"] if isinstance(info.get("epochs"), int) else run.recipe().train.epochs
    except (MlaError, OSError) as error:
        note = error.message if isinstance(error, MlaError) else str(error)
        command = train_command(run.path, {}, "--force") if (path / "recipe.yaml").exists() else ""
        return RunStatus(name, "damaged", epoch, epochs, None, None, age, note, command)
    command = "" if state.startswith("running") else train_command(run.path, info, "--resume")
    return RunStatus(name, state, epoch, epochs, None, None, age, note, command)


def unreadable_run(error: OSError) -> RunStatus:
    """A folder that cannot be listed."""
    return RunStatus(str(error.filename), "damaged", None, None, None, None, 0.0, f"cannot read: {error.strerror}", "")


def state_of(run: Run, info: dict[str, Any]) -> tuple[str, str]:
    """The state and a note on it. Raises MlaError for a state that no run has."""
    state = info.get("state", "absent")
    if state == "finished":
        return "finished", ""
    if state == "failed":
        return "failed", str(info.get("error", ""))
    if state == "absent":
        return "interrupted", "before its first epoch"
    if state != "running":
        raise MlaError(f"`{run.path / 'run.json'}` has state `{state}`", run.start_again)
    pid, host = info.get("pid"), info.get("host")
    if (lock := FolderLock.held(run.path)) is not None:
        elsewhere = lock.holder is not None and lock.holder.is_elsewhere
        return "running elsewhere" if elsewhere else "running", str(lock.holder or f"pid {pid}")
    if (now := run.info()) != info:  # it has ended since we looked
        return state_of(run, now)
    if host != platform.node():
        return "running elsewhere", f"or interrupted: pid {pid} on {host}"
    return "interrupted", ""


def fused_accuracies(path: Path) -> tuple[float | None, float | None, bool]:
    """Fused accuracy on val and test, from `results.csv`, and whether they are of a smoke run. Raises MlaError where
    they cannot be read."""
    found: dict[str, float] = {}
    smoke = False
    try:
        with open(Run(path).whole("results.csv"), encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row["output"] == "fused" and row["metric"] == "accuracy":
                    found[row["split"]] = float(row["value"])
                    smoke |= row.get("smoke") == "True"
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise MlaError(f"cannot read `{path / 'results.csv'}`: {error}") from error
    return found.get("val"), found.get("test"), smoke


# ---------------------------------------------------------------- prepared sets


def store_folders(data_dir: Path) -> list[Path]:
    """Prepared sets, half-built ones (`.NAME-HASH.partial`) and ones that were being replaced (`.NAME.old`)."""
    if not data_dir.is_dir():
        return []
    with contextlib.suppress(OSError):
        found = [path for path in data_dir.iterdir() if path.is_dir()]
        return [p for p in found if p.suffix in (".partial", ".old") or (p / "manifest.json").is_file()]
    return []


def store_status(path: Path, now: float) -> StoreStatus:
    """One folder below the data folder."""
    age = max(0.0, now - last_change(path, ("manifest.json", ".")))
    size = size_of(path)
    if path.name.startswith(".") and path.suffix == ".partial":
        name = path.stem[1:].rpartition("-")[0] or path.stem[1:]
        shards = sum(1 for _ in path.glob("*/*.json"))
        if FolderLock.is_held(path):
            return StoreStatus(name, "being built", "", None, "", size, shards, age, path.name, "")
        return StoreStatus(name, "half-built", "", None, "", size, shards, age, path.name, prepare_command(path, name))
    if path.name.startswith(".") and path.suffix == ".old":
        return StoreStatus(path.stem[1:], "replaced", "", None, "", size, None, age, f"{path.name} can be removed", "")
    try:
        manifest = read_sealed(path / "manifest.json")
        dataset, samples = str(manifest["dataset"]), int(manifest["counts"]["samples"])
        return StoreStatus(
            path.name, "prepared", dataset, samples, str(manifest["fingerprint"]), size, None, age, "", ""
        )
    except (MlaError, KeyError, TypeError, ValueError) as error:
        note = error.message if isinstance(error, MlaError) else f"`{path / 'manifest.json'}` lacks {error}"
        command = prepare_command(path, path.name) + " --force"
        return StoreStatus(path.name, "damaged", "", None, "", size, None, age, note, command)


def prepare_command(path: Path, name: str) -> str:
    """What builds a set; of a set that is no known data set, whose table must be named."""
    own = [name] if name in registry.names("datasets") else ["table", "--table", "TABLE", "--name", name]
    return shlex.join(
        ["mla", "prepare", *own, *(() if str(path.parent) == "data" else ("--data-dir", str(path.parent)))]
    )


def last_change(path: Path, names: tuple[str, ...]) -> float:
    """The latest modification among some files of a folder; 0 where there is none."""
    times = [0.0]
    for name in names:
        with contextlib.suppress(OSError):
            times.append((path / name).stat().st_mtime)
    return max(times)


def size_of(path: Path) -> int:
    """Bytes of all files below a folder."""
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            with contextlib.suppress(OSError):  # gone meanwhile
                total += os.lstat(os.path.join(folder, name)).st_size
    return total
