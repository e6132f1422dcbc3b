"""The run directory: claim, history, checkpoints, resume, read.

    runs/RECIPE-METHOD-sSEED-fFOLD-HASH8/
      recipe.yaml  run.json  history.jsonl  timing.jsonl  checkpoints/{last,best}*  checkpoints/frozen.safetensors
      predictions.parquet  results.csv  results.md

`run.json` moves running -> finished or failed. A checkpoint is a safetensors file and a JSON file that names it; the
JSON is written second, so it always points at a whole file. What never trains, the networks of frozen encoders, is
written once, and belongs to both.
"""

import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mla_cli.errors import MlaError
from mla_cli.files import (
    FolderLock,
    append_line,
    empty_folder,
    make_folder,
    read_json,
    sha256,
    sync_folder,
    whole_file,
    write_bytes,
    write_json,
    write_text,
)
from mla_cli.recipe import dump_yaml, load_recipe, recipe_hash
from mla_cli.schema import Recipe

if TYPE_CHECKING:
    from torch import Tensor

PACKAGES = ("mla-cli", "torch", "torchvision", "torchaudio", "numpy", "pandas", "pyarrow", "safetensors")
LIBRARIES = ("timm", "transformers")  # of encoders that have their name; recorded where a recipe uses them


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Installed versions, without importing anything."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def packages_of(recipe: Recipe) -> tuple[str, ...]:
    """What a run's numbers rest on: `PACKAGES`, and those of the extra `hf` that its encoders or features use."""
    makers = {"tokenizer", "extractor"}  # by the `tokens` of a text, by the `kind` of a sound
    used = {section.name for section in recipe.encoders.values()}
    if any(getattr(spec, "tokens", spec.kind) in makers for spec in recipe.features.values()):
        used.add("transformers")
    return (*PACKAGES, *(name for name in LIBRARIES if name in used))


def run_name(recipe: Recipe, fingerprint: str) -> str:
    """`emoji-mla-s0-f0-3fa9c1d2`: recipe, method, seed, fold, start of the hash."""
    digest = recipe_hash(recipe, fingerprint)[:8]
    return f"{recipe.name}-{recipe.method.name}-s{recipe.seed}-f{recipe.dataset.fold}-{digest}"


class Held(MlaError):
    """Another process is training the run."""


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
        return read_json(path, self.train_again) if path.is_file() else {}

    @property
    def is_imported(self) -> bool:
        """Whether its weights come from a checkpoint that was trained elsewhere."""
        return "imported" in self.info()

    @property
    def start_again(self) -> str:
        """The hint for what is damaged beyond repair."""
        with suppress(MlaError):  # `run.json` itself is damaged
            if self.is_imported:
                return f"import it again with `{self.info()['imported']['again']}`"
        return self.train_again

    @property
    def train_again(self) -> str:
        """The hint where it was trained here."""
        return f"start the run again with `mla train --recipe {self.recipe_file} --run-dir {self.path.parent} --force`"

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
        return load_recipe(str(self.recipe_file))

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
        if lock.taken():
            return lock
        info = {} if not (self.path / "run.json").is_file() else self.info()
        who = f" (process {info['pid']} on {info['host']})" if {"pid", "host"} <= info.keys() else ""
        raise Held(
            f"`{self.path}` is being trained by another process{who}", "wait until it has ended, then look again"
        )

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
            write_json(self.path / "run.json", {key: value for key, value in left.items() if key != "error"})
        self.update(
            state="running",
            hash=recipe_hash(recipe, fingerprint),
            data_fingerprint=fingerprint,
            command=sys.argv,
            pid=os.getpid(),
            host=platform.node(),
            versions=versions(packages_of(recipe)),
            **facts,
        )
        return (self.path / "checkpoints" / "last.json").is_file()

    def update(self, **facts: Any) -> None:
        """Set keys of `run.json`."""
        write_json(self.path / "run.json", self.info() | facts)

    # ------------------------------------------------------------ history

    def append(self, file: str, row: Mapping[str, Any]) -> None:
        """Add one line to a .jsonl file, durably."""
        append_line(self.path / file, json.dumps(row, allow_nan=False))

    def history(self, file: str = "history.jsonl") -> list[dict[str, Any]]:
        """All whole lines; a last line cut off by a crash is left out. Raises MlaError for a damaged one."""
        path = self.path / file
        if not path.is_file():
            return []
        rows = []
        lines = path.read_text("utf-8", errors="replace").split("\n")[:-1]
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                rows.append(row | {"epoch": int(row["epoch"])})
            except (ValueError, KeyError, TypeError) as error:
                raise MlaError(f"{path}:{number}: not a line of this run's history", self.start_again) from error
        return rows

    def keep_history(self, epochs: int) -> None:
        """Drop the lines after the first `epochs` epochs: they will be made again from the checkpoint."""
        for file in ("history.jsonl", "timing.jsonl"):
            rows = [row for row in self.history(file) if row["epoch"] <= epochs]
            if file == "history.jsonl" and [row["epoch"] for row in rows] != list(range(1, epochs + 1)):
                raise MlaError(f"`{self.path / file}` lacks some of the {epochs} epochs trained", self.start_again)
            write_text(self.path / file, "".join(json.dumps(row) + "\n" for row in rows))

    # ------------------------------------------------------------ checkpoints

    def save_checkpoint(self, which: str, tensors: "Mapping[str, Tensor]", values: Mapping[str, Any]) -> None:
        """Write `checkpoints/WHICH.json` and the safetensors file it names; then remove the one it replaces."""
        from safetensors.torch import save

        folder = self.path / "checkpoints"
        name = f"{which}-e{values['epoch']:04d}-r{values['round']:06d}.safetensors"
        with whole_file(folder / name) as file:
            file.write(save({key: tensor.detach().contiguous() for key, tensor in tensors.items()}))
        write_json(folder / f"{which}.json", {"tensors": name, **values})
        for old in folder.glob(f"{which}-e*.safetensors"):
            if old.name != name:
                old.unlink()

    @property
    def frozen_file(self) -> Path:
        return self.path / "checkpoints" / "frozen.safetensors"

    def save_frozen(self, tensors: "Mapping[str, Tensor]") -> None:
        """Write the frozen networks; they stay as they are. Raises MlaError if the run began with other ones."""
        from safetensors.torch import save

        content = save({key: tensor.detach().contiguous() for key, tensor in tensors.items()})
        digest = hashlib.sha256(content).hexdigest()
        if self.info().get("frozen_sha256") not in (None, digest):
            raise MlaError(
                f"`{self.path}` began with other frozen encoders than its recipe makes now", self.start_again
            )
        self.update(frozen_sha256=digest)
        if not (self.frozen_file.is_file() and sha256(self.frozen_file) == digest):
            write_bytes(self.frozen_file, content)

    def load_frozen(self) -> "dict[str, Tensor]":
        """What `save_frozen` wrote, on the CPU; nothing for a run without frozen encoders."""
        from safetensors.torch import load

        digest = self.info().get("frozen_sha256")
        if digest is None:
            return {}
        try:
            content = self.frozen_file.read_bytes()
        except OSError as error:
            raise MlaError(f"cannot read `{self.frozen_file}`: {error.strerror}", self.start_again) from error
        if hashlib.sha256(content).hexdigest() != digest:
            raise MlaError(f"`{self.frozen_file}` is damaged: it is not what training wrote", self.start_again)
        return load(content)

    def checkpoint_values(self, which: str) -> dict[str, Any]:
        """The JSON values of a checkpoint, among them `tensors`, the name of its other file."""
        path = self.path / "checkpoints" / f"{which}.json"
        if not path.is_file():
            raise MlaError(f"`{self.path}` has no checkpoint `{which}`", self.start_again)
        values = read_json(path, self.start_again)
        if not isinstance(values.get("tensors"), str):
            raise MlaError(f"`{path}` names no file of tensors", self.start_again)
        return values

    def load_checkpoint(self, which: str) -> "tuple[dict[str, Tensor], dict[str, Any]]":
        """Tensors (on the CPU) and values of a checkpoint, frozen networks included. Nothing pickled is read."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        values = self.checkpoint_values(which)
        path = self.path / "checkpoints" / values["tensors"]
        try:
            return load_file(path) | self.load_frozen(), values
        except (OSError, SafetensorError) as error:
            raise MlaError(f"cannot read checkpoint `{path}`: {error}", self.start_again) from error

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
