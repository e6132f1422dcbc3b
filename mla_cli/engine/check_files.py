"""What `mla check` looks at below a folder, and how files are compared with their checksums. No torch."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mla_cli.engine.events import Progress, Steps
from mla_cli.engine.findings import OK, PROBLEM, WARNING, Finding
from mla_cli.errors import MlaError
from mla_cli.files import has_seal, read_sealed

BLOCK = 4 << 20  # bytes between two looks at the clock
MB = 1_000_000
LOOKS = 3  # at something that others make anew while we look
RECIPES = (".yaml", ".yml")


@dataclass(frozen=True)
class Thing:
    """Something of ours: `store`, `partial` (a half-built one), `run`, `ablation`, `recipe` or `lock`; or a folder that
    is `unreadable`, with the reason."""

    kind: str
    path: Path
    reason: str = ""

    def size(self) -> int:
        """Bytes of its files."""
        return sum(size_of(file) for file in files_of(self.path)) if self.path.is_dir() else 0


def things_at(place: Path) -> Iterator[Thing]:
    """A file or folder of ours, or all of them below a folder, sorted by path; links are not followed.

    A file of a run, set or ablation stands for the whole of it; any other one is taken for a recipe.
    """
    if not place.is_dir():
        yield Thing("recipe", place) if place.suffix in RECIPES else owner_of(place)
        return
    unreadable: list[OSError] = []
    for folder, names, files in os.walk(place, onerror=unreadable.append):
        path = Path(folder)
        # what is hidden is being made, imported or replaced; of these only half-built sets are kept for long
        names[:] = sorted(name for name in names if not name.startswith(".") or name.endswith(".partial"))
        kind = kind_of(path, names, files)
        if kind is not None:
            names.clear()  # they hold none of the others
            yield Thing(kind, path)
        for name in sorted(files):
            if name.startswith(".") and name.endswith(".lock") and kind is None:
                yield Thing("lock", path / name)
    for error in unreadable:
        if not isinstance(error, FileNotFoundError):  # gone meanwhile
            yield Thing("unreadable", Path(error.filename), error.strerror or str(error))


def owner_of(file: Path) -> Thing:
    """What a file belongs to: a folder of ours at most two levels above it."""
    if file.name.startswith(".") and file.name.endswith(".lock"):
        return Thing("lock", file)
    for folder in list(file.parents)[:2]:
        _, names, files = next(os.walk(folder), ("", [], []))
        if (kind := kind_of(folder, names, files)) is not None:
            return Thing(kind, folder)
    return Thing("recipe", file)


def kind_of(path: Path, names: list[str], files: list[str]) -> str | None:
    """What a folder is, by what lies in it."""
    if path.name.startswith(".") and path.suffix == ".partial":
        return "partial"
    if "manifest.json" in files or ("index.parquet" in files and "classes.txt" in files):
        return "store"
    if "run.json" in files or ("recipe.yaml" in files and "checkpoints" in names):
        return "run"
    return "ablation" if "settings.json" in files else None


def files_of(folder: Path) -> list[Path]:
    """All files below a folder, sorted; links are not followed."""
    return sorted(Path(at) / name for at, _, names in os.walk(folder) for name in names)


def size_of(path: Path) -> int:
    """Bytes of a file; 0 where it is gone meanwhile."""
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def settled(look: Callable[[], Steps[list[Finding]]], file: Path) -> Steps[list[Finding]]:
    """Look again where a thing was made anew while we looked, which `file` tells: it is not damaged then."""
    for _ in range(LOOKS):
        before = stamp(file)
        found = yield from look()
        if stamp(file) == before or not any(finding.state == PROBLEM for finding in found):
            break
    return found


def stamp(file: Path) -> tuple[int, int] | None:
    """What changes with a file that is replaced."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


class Reader:
    """Hashes files and tells how far it is, of `total` bytes."""

    def __init__(self, total: int):
        self.done, self.total = 0, total

    def sha256(self, path: Path) -> Steps[str]:
        """Hex digest of a file. Raises OSError."""
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
                self.done += len(block)
                yield Progress("MB checked", min(self.done, self.total) // MB, self.total // MB)
        return digest.hexdigest()


class Examined:
    """Files of one thing: how many were whole, and a finding for each that is not. mend: how to get them back."""

    def __init__(self, kind: str, reader: Reader, mend: Callable[[], str]):
        self.kind, self.reader, self.mend = kind, reader, mend
        self.whole, self.bytes, self.bare = 0, 0, 0
        self.findings: list[Finding] = []

    def add(self, path: Path, state: str, text: str, mend: str | None = None) -> None:
        self.findings.append(Finding(self.kind, str(path), state, text, self.mend() if mend is None else mend))

    def problem(self, path: Path, text: str, mend: str | None = None) -> None:
        self.add(path, PROBLEM, text, mend)

    def compare(self, path: Path, digest: str, mend: str | None = None) -> Steps[bool]:
        """Compare a file with its SHA-256; the value says whether it is whole."""
        try:
            found = yield from self.reader.sha256(path)
        except FileNotFoundError:
            self.problem(path, "is missing", mend)
            return False
        except OSError as error:
            self.problem(path, f"cannot be read: {error.strerror}", mend)
            return False
        if found != digest:
            self.problem(path, "is damaged or was edited: its checksum differs", mend)
            return False
        self.whole, self.bytes = self.whole + 1, self.bytes + size_of(path)
        return True

    def sealed(self, path: Path, mend: str | None = None) -> dict[str, Any] | None:
        """Read a JSON file that carries its own checksum; None where it cannot be used."""
        try:
            content = read_sealed(path)
            bare = not has_seal(path)
        except MlaError as error:
            self.problem(path, error.message.replace(f"`{path}` ", ""), mend)
            return None
        self.whole, self.bytes = self.whole + 1, self.bytes + size_of(path)
        self.bare += bare
        return content

    def left_behind(self, folder: Path) -> None:
        """Half-written files of killed processes: harmless, but they take room."""
        left = [file for file in files_of(folder) if file.name.startswith(".") and file.name.endswith(".tmp")]
        if left:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            self.add(left[0], WARNING, f"was left half-written by a killed process{more}", "it can be removed")

    def report(self, path: Path, about: str) -> list[Finding]:
        """One line for the whole thing where nothing of it is broken, and one for each finding."""
        if any(finding.state == PROBLEM for finding in self.findings):
            return self.findings
        says = f"{about}; {self.whole} files, {self.bytes / MB:.1f} MB are what was written"
        if self.bare:
            says += f", {self.bare} of them without checksum (made by an earlier version)"
        return [Finding(self.kind, str(path), OK, says), *self.findings]


def shard_names(folder: Path, entry: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """The shards that a manifest's entry lists, and their SHA-256. Raises KeyError or TypeError for a damaged entry."""
    for number, digest in enumerate(entry["sha256"]):
        yield folder / f"{number:05d}.npy", str(digest)
