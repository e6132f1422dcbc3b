"""What the scans of several data sets share: walking raw folders, reading tables, the manifest's last touches."""

import csv
import os
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from mla_cli.data.manifest import Manifest, Problem, relative_ref
from mla_cli.errors import MlaError
from mla_cli.files import read_at_most

MAX_TABLE_BYTES = 2**28  # of a published table of annotations


@dataclass
class Scan:
    """A scan in progress: rows by id, problems and notes, to become a manifest."""

    root: Path
    modalities: dict[str, str]  # name -> kind
    rows: dict[str, dict[str, str | None]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def problem(self, kind: str, id: str, modality: str, where: Path | str, reason: str) -> None:
        """List one problem; `where` is a file below the root, or a file's name and line as text."""
        file = relative_ref(self.root, where) if isinstance(where, Path) else where
        self.problems.append(Problem(kind, printable(id), modality, printable(file), printable(reason)))

    def add(self, id: str, label: str, group: str = "", split: str = "", **extra: str) -> None:
        """Add a sample with every modality absent, unless its id is known already."""
        absent: dict[str, str | None] = {f"ref.{m}": None for m in self.modalities}
        self.rows.setdefault(id, {"id": id, "label": label, "group": group, "split": split, **extra, **absent})

    def put(self, id: str, modality: str, path: Path, fragment: str = "") -> None:
        """Set a sample's reference to a file; a second file of the same modality is a problem, the first one stays."""
        held = self.rows[id][f"ref.{modality}"]
        if held is None:
            self.rows[id][f"ref.{modality}"] = relative_ref(self.root, path) + fragment
        else:
            self.problem("duplicate_id", id, modality, path, f"`{id}` is already taken from `{held}`")

    def manifest(self, classes: Sequence[str], expected: dict[str, str]) -> Manifest:
        """The manifest, with a `missing` problem for every absent modality that has no problem of its own yet.

        classes: all classes of the data set; those without a sample are left out, with a note.
        expected: modality -> the file that should be there; `{id}` and the row's other columns are filled in.
        """
        known = {(problem.id, problem.modality) for problem in self.problems}
        for id, row in sorted(self.rows.items()):
            for modality, file in expected.items():
                if row[f"ref.{modality}"] is None and (id, modality) not in known:
                    self.problem("missing", id, modality, file.format(**row), f"no {modality} for `{id}`")
        columns = ["id", "label", "group", "split", *(f"ref.{m}" for m in self.modalities)]
        records = list(self.rows.values())
        rows = pd.DataFrame(records, columns=None if records else columns, dtype=object)  # object: absent stays None
        found = set(rows["label"])
        empty = [name for name in classes if name not in found]
        if empty:
            shown = ", ".join(f"`{name}`" for name in empty[:5]) + (", ..." if len(empty) > 5 else "")
            self.notes.append(f"{len(empty)} of {len(classes)} classes have no sample and are left out: {shown}")
        kept = tuple(name for name in classes if name in found)
        return Manifest(rows, dict(self.modalities), kept, self.problems, self.notes)


def start(root: Path, modalities: dict[str, str]) -> Scan:
    """A scan of a raw folder; raises MlaError if there is no such folder."""
    if not root.is_dir():
        raise MlaError(f"no folder `{root}`", "name the folder of the raw data with `--root`")
    return Scan(root, dict(modalities))


def not_this(root: Path, title: str, tree: str) -> MlaError:
    """The error for a folder that holds something else."""
    return MlaError(f"`{root}` is not {title}", f"expected below `--root`:\n{tree}")


def base_with(root: Path, *names: str) -> Path | None:
    """The root, or its only direct subfolder, that has one of these entries (any case); None if there is none.

    Archives often unpack into a folder of their own.
    """
    if any(child(root, name) for name in names):
        return root
    inner = [path for path in sorted(root.iterdir()) if path.is_dir() and any(child(path, name) for name in names)]
    return inner[0] if len(inner) == 1 else None


def child(folder: Path, *parts: str) -> Path | None:
    """An entry below a folder whatever the case of its name; the exact name wins. None if there is none."""
    path = folder
    for part in parts:
        exact = path / part
        if not exact.exists():
            alike = sorted(p for p in path.iterdir() if p.name.lower() == part.lower()) if path.is_dir() else []
            if not alike:
                return None
            exact = alike[0]
        path = exact
    return path


def media_files(scan: Scan, folder: Path | None, suffixes: Collection[str], modality: str = "") -> list[Path]:
    """All files below a folder with one of these suffixes (any case), sorted; hidden files are not looked at.

    Links to folders are followed once. Folders that cannot be listed are problems, and so are names that are not UTF-8:
    nothing could refer to them.
    """

    def unreadable(error: OSError) -> None:
        scan.problem("undecodable", "", modality, Path(error.filename), f"the folder cannot be read: {error.strerror}")

    found, visited = list[Path](), set[tuple[int, int]]()
    for parent, folders, files in os.walk(folder, onerror=unreadable, followlinks=True) if folder else ():
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            path = Path(parent, name)
            if name.startswith(".") or path.suffix.lower() not in suffixes:
                continue
            if is_text(str(path.relative_to(scan.root))):
                found.append(path)
            else:
                scan.problem("undecodable", "", modality, path, "the file's name is not UTF-8; rename it")
    return sorted(found)


def id_of(path: Path) -> str:
    """A file's stem in one Unicode form: file systems differ in how they store accents."""
    return unicodedata.normalize("NFC", path.stem)


def read_lines(path: Path) -> list[tuple[int, str]]:
    """(line number from 1, text) of every line that is not blank; bytes that are not UTF-8 become surrogates."""
    text = read_at_most(path, MAX_TABLE_BYTES, "table of annotations").decode("utf-8-sig", "surrogateescape")
    return [(number, line.rstrip("\r")) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def csv_cells(line: str) -> list[str]:
    """The stripped cells of one CSV line; none if it is no CSV."""
    try:
        return [cell.strip() for cell in next(csv.reader([line]))]
    except (csv.Error, StopIteration):
        return []


def is_text(value: str) -> bool:
    """Whether text can be written as UTF-8 (see `read_lines`).

    >>> is_text("caf\u00e9"), is_text(b"caf\\xe9".decode("utf-8", "surrogateescape"))
    (True, False)
    """
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def braced(text: str) -> str:
    """Text that stands for itself in `Scan.manifest`'s `expected`."""
    return text.replace("{", "{{").replace("}", "}}")


def printable(text: str) -> str:
    """Text that can be printed and stored, whatever bytes it was read from."""
    return text.encode("utf-8", "backslashreplace").decode()
