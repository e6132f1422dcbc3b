"""The run directory: claim, history, checkpoints, resume, read.

    runs/RECIPE-METHOD-sSEED-fFOLD-HASH8/
      recipe.yaml  run.json  history.jsonl  timing.jsonl  checkpoints/{last,best}*  checkpoints/frozen.safetensors
      predictions.parquet  results.csv  results.md

`run.json` moves running -> finished or failed; finished, it holds the SHA-256 of the run's other files, which are
compared with it when they are read. Beside the folder lies `.NAME.lock` while somebody works in it.
"""

import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mla_cli.engine.checkpoints import packed, read_checkpoint, read_frozen, read_values, write_checkpoint, write_frozen
from mla_cli.engine.going_on import start_again
from mla_cli.engine.packages import packages_of, versions
from mla_cli.errors import MlaError
from mla_cli.files import (
    SEAL,
    append_line,
    empty_folder,
    make_folder,
    read_sealed,
    sha256,
    sync_folder,
    write_sealed,
    write_text,
)
from mla_cli.locks import FolderLock
from mla_cli.recipe import dump_yaml, load_recipe, recipe_hash
from mla_cli.schema import Recipe

if TYPE_CHECKING:
    from torch import Tensor

# What a finished run leaves beside `run.json` and `checkpoints`; `results.md` is written later, and not by the engine.
FILES = ("recipe.yaml", "history.jsonl", "timing.jsonl", "predictions.parquet", "results.csv", "present.parquet")


def run_name(recipe: Recipe, fingerprint: str) -> str:
    """`emoji-mla-s0-f0-3fa9c1d2`: recipe, method, seed, fold, start of the hash."""
    digest = recipe_hash(recipe, fingerprint)[:8]
    return f"{recipe.name}-{recipe.method.name}-s{recipe.seed}-f{recipe.dataset.fold}-{digest}"


class Held(MlaError):
    """Another process is training the run."""


def held(lock: FolderLock) -> Held:
    """The error that names who trains a run."""
    wait = "wait until it has ended, then look again with `mla status`"
    return Held(f"`{lock.folder}` is being trained by another process{lock.told()}", lock.how_to_go_on(wait))


@dataclass
class Run:
    """One run's folder."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def predictions(self) -> Path:
        return self.path / "predictions.parquet"

    def info(self) -> dict[str, Any]:
        """`run.json`, or an empty mapping where the run never started."""
        path = self.path / "run.json"
        if not path.is_file():
            return {}
        again = start_again(self.path, {})
        return read_sealed(path, f"{again}; if it was edited on purpose, remove its line `{SEAL}`")

    @property
    def is_imported(self) -> bool:
        """Whether its weights come from a checkpoint that was trained elsewhere."""
        return "imported" in self.info()

    @property
    def start_again(self) -> str:
        """The hint for what is damaged beyond repair."""
        info: dict[str, Any] = {}
        with suppress(MlaError):  # `run.json` itself is damaged
            info = self.info()
        if "imported" in info:
            return f"import it again with `{info['imported']['again']}`"
        return start_again(self.path, info)

    @property
    def recipe_file(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def state(self) -> str:
        """`absent`, `running` (or interrupted: nobody can tell from the file), `failed` or `finished`."""
        return self.info().get("state", "absent")

    def recipe(self) -> Recipe:
        if not self.recipe_file.is_file():
            raise MlaError(f"`{self.path}` has lost its `recipe.yaml`", "train it again with `mla train --force`")
        edited, info = self.damage("recipe.yaml"), self.info()
        try:
            recipe = load_recipe(str(self.recipe_file))
        except MlaError as error:
            raise MlaError(edited.message, "put it back: it cannot be read any more") if edited else error from None
        if edited and recipe_hash(recipe, info["data_fingerprint"]) != info["hash"]:  # else its comments at most
            raise MlaError(
                f"`{self.recipe_file}` was edited after the run: it is not what was trained",
                f"put it back, or train what it says now with `mla train --recipe {self.recipe_file} "
                f"--run-dir {self.path.parent}`",
            )
        return recipe

    def refuse(self, resume: bool, force: bool) -> None:
        """Raise MlaError if the run is finished, or was interrupted and neither `resume` nor `force` is given."""
        if force:  # what it holds may be damaged: do not look
            return
        state = self.state
        if state == "absent":
            return
        if state == "finished":
            raise MlaError(
                f"`{self.path}` already holds a finished run of this recipe",
                f"evaluate it with `mla eval {self.path}`, or pass `--force`",
            )
        if not resume:
            raise MlaError(
                f"`{self.path}` holds an interrupted run of this recipe",
                "continue it with `--resume`, or start again with `--force`",
            )

    def hold(self) -> FolderLock:
        """The run for this process alone, until the lock is released or the process ends, however it ends.

        Raises Held, a MlaError, where another process has it.
        """
        lock = FolderLock(self.path)
        if not lock.taken():
            raise held(lock)
        return lock

    def refuse_held(self) -> None:
        """Raise Held where another process trains the run right now."""
        if (lock := FolderLock.held(self.path)) is not None:
            raise held(lock)

    def claim(self, recipe: Recipe, fingerprint: str, facts: Mapping[str, Any], resume: bool, force: bool) -> bool:
        """Start or take up the run; True if there is a checkpoint to go on from.

        Raises MlaError if it is finished already, or was interrupted and neither `resume` nor `force` is given.
        """
        self.refuse(resume, force)
        if self.path.is_dir() and (force or not (self.path / "run.json").is_file()):  # what an interrupted force left
            (self.path / "run.json").unlink(missing_ok=True)  # first of all: nothing may look like a run any more
            sync_folder(self.path)
            empty_folder(self.path)  # but keep the folder: it may be held
        make_folder(self.path / "checkpoints")
        write_text(self.recipe_file, dump_yaml(recipe))
        if "error" in (left := self.info()):  # why it failed before; this is a new try
            write_sealed(self.path / "run.json", {key: value for key, value in left.items() if key != "error"})
        self.update(
            state="running",
            hash=recipe_hash(recipe, fingerprint),
            data_fingerprint=fingerprint,
            command=sys.argv,
            pid=os.getpid(),
            host=platform.node(),
            files={"recipe.yaml": sha256(self.recipe_file)},
            versions=versions(packages_of(recipe)),
            **facts,
        )
        return (self.path / "checkpoints" / "last.json").is_file()

    def update(self, **facts: Any) -> None:
        """Set keys of `run.json`."""
        write_sealed(self.path / "run.json", self.info() | facts)

    def digests(self) -> dict[str, str]:
        """The SHA-256 of the run's files that are there, for `run.json` of a finished run."""
        return {name: sha256(self.path / name) for name in FILES if (self.path / name).is_file()}

    def seal(self, *names: str) -> None:
        """Note the SHA-256 of some of the run's files in `run.json`."""
        digests = self.info().get("files", {})
        new = digests | {name: sha256(self.path / name) for name in names if (self.path / name).is_file()}
        if new != digests:
            self.update(files=new)

    def whole(self, name: str) -> Path:
        """The path of one of the run's files. Raises MlaError where it is not what the run wrote."""
        if (damage := self.damage(name)) is not None:
            raise damage
        return self.path / name

    def damage(self, name: str) -> MlaError | None:
        """What is wrong with one of the run's files by its SHA-256 in `run.json`; None where that says nothing."""
        path, digest = self.path / name, self.info().get("files", {}).get(name)
        try:
            if digest is None or not path.is_file() or sha256(path) == digest:
                return None
        except OSError as error:  # another process starts the run again
            return MlaError(f"cannot read `{path}`: {error.strerror}", self.start_again)
        return MlaError(f"`{path}` was damaged or edited: it is not what the run wrote", self.start_again)

    # ------------------------------------------------------------ history

    def append(self, file: str, row: Mapping[str, Any]) -> None:
        """Add one line to a .jsonl file, durably."""
        append_line(self.path / file, json.dumps(row, allow_nan=False))

    def history(self, file: str = "history.jsonl") -> list[dict[str, Any]]:
        """All whole lines; a last line cut off by a crash is left out. Raises MlaError for a damaged one."""
        path = self.whole(file)
        if not path.is_file():
            return []
        rows = []
        try:
            lines = path.read_text("utf-8", errors="replace").split("\n")[:-1]
        except OSError as error:
            raise MlaError(f"cannot read `{path}`: {error.strerror}", self.start_again) from error
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                _ = [float(value) for value in row.values() if value is not None]  # numbers, every one
                rows.append(row | {"epoch": int(row["epoch"])})
            # OverflowError: a number beyond float64, or an endless epoch
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
                raise MlaError(f"{path}:{number}: not a line of this run's history", self.start_again) from error
        return rows

    def keep_history(self, epochs: int) -> None:
        """Drop the lines after the first `epochs` epochs: they will be made again from the checkpoint."""
        for file in ("history.jsonl", "timing.jsonl"):
            rows = [row for row in self.history(file) if row["epoch"] <= epochs]
            whole = len(rows) == epochs and all(row["epoch"] == number for number, row in enumerate(rows, 1))
            if file == "history.jsonl" and not whole:
                raise MlaError(f"`{self.path / file}` lacks some of the {epochs} epochs trained", self.start_again)
            write_text(self.path / file, "".join(json.dumps(row) + "\n" for row in rows))

    # ------------------------------------------------------------ checkpoints

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def save_checkpoint(self, which: str, tensors: "Mapping[str, Tensor]", values: Mapping[str, Any]) -> None:
        """Write `checkpoints/WHICH.json` and the safetensors file it names; then remove the one it replaces."""
        write_checkpoint(self.checkpoints, which, tensors, values)

    @property
    def frozen_file(self) -> Path:
        return self.checkpoints / "frozen.safetensors"

    def save_frozen(self, tensors: "Mapping[str, Tensor]") -> None:
        """Write the frozen networks; they stay as they are. Raises MlaError if the run began with other ones."""
        content = packed(tensors)
        digest = hashlib.sha256(content).hexdigest()
        if self.info().get("frozen_sha256") not in (None, digest):
            raise MlaError(
                f"`{self.path}` began with other frozen encoders than its recipe makes now", self.start_again
            )
        self.update(frozen_sha256=digest)
        write_frozen(self.frozen_file, content, digest)

    def load_frozen(self) -> "dict[str, Tensor]":
        """What `save_frozen` wrote, on the CPU; nothing for a run without frozen encoders."""
        digest = self.info().get("frozen_sha256")
        return {} if digest is None else read_frozen(self.frozen_file, digest, self.start_again)

    def checkpoint_values(self, which: str) -> dict[str, Any]:
        """The JSON values of a checkpoint, among them `tensors`, the name of its other file."""
        return read_values(self.checkpoints, which, self.start_again)

    def load_checkpoint(self, which: str) -> "tuple[dict[str, Tensor], dict[str, Any]]":
        """Tensors (on the CPU) and values of a checkpoint, frozen networks included. Nothing pickled is read."""
        tensors, values = read_checkpoint(self.checkpoints, which, self.start_again)
        return tensors | self.load_frozen(), values

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Record an error of ours as the reason why the run failed; an interrupted run stays `running`."""
        try:
            yield
        except MlaError as error:
            with suppress(MlaError):  # the disk may be full: then it stays `running`, and resumes all the same
                if self.path.is_dir():
                    self.update(state="failed", error=error.message)
            raise
