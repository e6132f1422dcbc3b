"""Your own data: a table with columns `id`, `label`, optional `group` and `split`, and one column per modality.

A cell holds a file below the raw root (audio, image, video, a text file), a row of an array (`x.npy::17`), or the text
itself; an empty cell means that the sample does not have the modality. What a column holds is read off its cells'
extensions, or off the files' first bytes where the extensions say nothing, and can be overridden. CSV (commas,
semicolons or tabs, UTF-8), TSV or Parquet. Classes are the sorted labels; there are no folds.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from mla_cli import registry
from mla_cli.data import splits
from mla_cli.data.kinds import HEAD_BYTES, SUFFIX_KINDS, kind_of_content
from mla_cli.data.manifest import MODALITY_KINDS, Manifest
from mla_cli.data.split_lines import SPLIT_WORDS
from mla_cli.datasets import _common
from mla_cli.datasets._tables import MAX_COLUMNS, read_cells
from mla_cli.errors import MlaError

TITLE = "a table of your own"
CITATION = "The table's owner; cite your own source."
LICENSE = "LicenseRef-your-own"
TERMS = "Whatever the table's owner allows."
SOURCE = "Any CSV, TSV or Parquet file: `mla prepare table --table my.csv --root FOLDER`."
ATTRIBUTION = ""
CLASSES: tuple[str, ...] = ()  # the labels found
MODALITIES: dict[str, str] = {}  # the columns found
TREE = """my.csv                       id,label[,group][,split],MODALITY,...
                             cells: a path below --root, text, `x.npy::17`, or nothing"""
PROTOCOLS = {
    "official": "the table's own column `split`; val carved out of train where it names none",
    "random": "60/20/20 within each class, drawn with the split seed; whole groups where there are some",
    "file": "lists of your own, with --split-file",
}
RESERVED = ("id", "label", "group", "split")
FRAGMENT = re.compile(r"#(?:t|xywh|encoding)=[^#]*$")  # as in data/references.py
ARCHIVE = re.compile(r"(?is)(\.(?:zip|npz|npy))::.*")
LOOKED_AT = 64  # cells of a column whose files are opened to see what they are


def scan(
    root: Path,
    table: str | Path | None = None,
    kinds: Mapping[str, str] | None = None,
    allow_outside: bool = False,
    labelled: bool = True,
) -> Manifest:
    """Read a table; files are looked for below `root`.

    kinds: modality -> kind where the extensions mislead, or `ignore` for a column that is no modality.
    allow_outside: admit files outside of `root`. labelled: False admits a table without labels (all labels are "").
    """
    path = _table_path(root, table)
    found = _common.start(root, {})

    def bad_line(line: int, reason: str) -> None:
        found.problem("bad_row", "", "", f"{path.name}, line {line}", reason)

    header, cells = read_cells(path, lambda header: _check_header(path, header, labelled), bad_line)
    columns = {name: [row[i] for _, row in cells] for i, name in enumerate(header)}
    resolver, outside = _Resolver(root, allow_outside), list[str]()
    found.modalities = _modalities(found, columns, dict(kinds or {}), resolver, labelled)
    for i, (number, _) in enumerate(cells):
        row = {name: values[i] for name, values in columns.items()}
        where = f"{path.name}, {'row' if path.suffix.lower() == '.parquet' else 'line'} {number}"
        if not row["id"]:
            found.problem("bad_row", "", "", where, "no id")
        elif row["id"] in found.rows:
            found.problem("duplicate_id", row["id"], "", where, "the id is already taken; the first row stays")
        elif labelled and not row["label"]:
            found.problem("unknown_label", row["id"], "", where, "no label")
        elif not any(row[m] for m in found.modalities):
            found.problem("bad_row", row["id"], "", where, "every modality is empty")
        else:
            outside += _add(found, row, where, resolver)
    if outside:
        raise MlaError(
            f"{len(outside)} paths of `{path}` lead outside of `{root}` (first: `{outside[0]}`)",
            "move the files below `--root`, name another `--root`, or pass `--allow-outside` if you trust the table",
        )
    labels = {str(row["label"]) for row in found.rows.values()}
    numeric = all(re.fullmatch(r"-?\d{1,18}", label) for label in labels)
    return found.manifest(sorted(labels, key=int if numeric else str) if labelled else (), {})


def default_protocol(rows: pd.DataFrame) -> str:
    """`official` where the table has splits, else `random`."""
    return "official" if (rows["split"] != "").any() else "random"


def split(rows: pd.DataFrame, protocol: str, seed: int, fold: int) -> np.ndarray:
    """The split of every row; see PROTOCOLS."""
    splits.check_fold(fold, 1)
    grouped = bool((rows["group"] != "").any())
    match protocol:
        case "official":
            split = splits.official(rows)
            return split if (split == "val").any() else splits.carve_val(split, rows, 0.1, seed, by_group=grouped)
        case "random":
            fractions = (0.6, 0.2, 0.2)
            return splits.by_group(rows, fractions, seed) if grouped else splits.stratified(rows, fractions, seed)
    raise splits.unknown_protocol(protocol, PROTOCOLS)


# ---------------------------------------------------------------- reading


def _table_path(root: Path, table: str | Path | None) -> Path:
    if table is None:
        inside = [root / f"table{suffix}" for suffix in (".csv", ".tsv", ".parquet")]
        table = next((path for path in inside if path.is_file()), None)
        if table is None:
            raise MlaError("no table is named", f"pass it with `--table my.csv`; expected:\n{TREE}")
    if Path(table).is_dir():
        raise MlaError(f"`{table}` is a folder, not a table", "name the CSV, TSV or Parquet file in it")
    if not Path(table).is_file():
        raise MlaError(f"no table `{table}`", f"expected:\n{TREE}")
    return Path(table)


def _check_header(path: Path, header: list[str], labelled: bool) -> None:
    if len(header) > MAX_COLUMNS:
        raise MlaError(
            f"`{path}` has {len(header)} columns, at most {MAX_COLUMNS} are read", "write vectors to .npy files"
        )
    twice = [name for name, number in Counter(header).items() if number > 1]
    if twice:
        raise MlaError(f"`{path}` has two columns `{twice[0]}`", "give every column a name of its own")
    for needed in ("id", "label") if labelled else ("id",):
        if needed not in header:
            hint = registry.did_you_mean(needed, header, f"its columns are {', '.join(f'`{h}`' for h in header[:10])}")
            raise MlaError(f"`{path}` has no column `{needed}`", hint)


# ---------------------------------------------------------------- modalities


def _modalities(
    found: _common.Scan, columns: dict[str, list[str]], kinds: dict[str, str], resolver: "_Resolver", labelled: bool
) -> dict[str, str]:
    """Modality -> kind, in the table's order."""
    names = [name for name in columns if name not in RESERVED]
    for name, kind in kinds.items():
        if name not in names:
            raise MlaError(f"the table has no modality `{name}`", registry.did_you_mean(name, names))
        if kind not in (*MODALITY_KINDS, "ignore"):
            raise MlaError(f"no kind `{kind}`", registry.did_you_mean(kind, [*MODALITY_KINDS, "ignore"]))
    modalities = dict[str, str]()
    for name in names:
        if kinds.get(name) == "ignore":
            continue
        # Modality names become folders and parts of column names such as `logits.audio+text`.
        if not re.fullmatch(r"\w[\w-]*", name):
            raise MlaError(f"column `{name}` cannot name a modality", "use letters, digits, `_` and `-` only")
        if not labelled and name in kinds:  # a trained model's modality, though every row may lack it
            modalities[name] = kinds[name]
        elif any(columns[name]):
            modalities[name] = kinds.get(name) or kind_of(columns[name], resolver.kind_of_file)
            if not modalities[name]:
                raise MlaError(
                    f"column `{name}` holds files of several kinds or of none that is known",
                    f"say what it is, such as `--modality {name}=audio`",
                )
        else:
            found.notes.append(f"column `{name}` is empty and left out")
    if not modalities:
        raise MlaError("the table has no column with a modality", f"expected:\n{TREE}")
    return modalities


def kind_of(cells: list[str], kind_of_file: Callable[[str], str] = lambda cell: "text") -> str:
    """What a column holds: the kind that more than half of its cells' extensions name; "" for files of mixed kinds.

    kind_of_file: what a cell without a telling extension is; asked for LOOKED_AT of them, which stand for all.

    >>> kind_of(["a.jpg", "b c.PNG", ""]), kind_of(["see a.jpg", "hello", "x"]), kind_of(["a.wav", "b.mp4"])
    ('image', 'text', '')
    """
    filled = [cell for cell in cells if cell]
    named = [SUFFIX_KINDS.get(os.path.splitext(_file_part(cell))[1].lower(), "") for cell in filled]
    votes: dict[str, float] = defaultdict(float, Counter(kind for kind in named if kind))
    unnamed = [cell for cell, kind in zip(filled, named, strict=True) if not kind]
    looked_at = unnamed[:: -(-len(unnamed) // LOOKED_AT) or 1]
    for cell in looked_at:
        votes[kind_of_file(cell)] += len(unnamed) / len(looked_at)
    kind = max(votes, key=lambda kind: votes[kind])
    if votes[kind] > len(filled) / 2:
        return kind
    return "text" if votes["text"] >= len(filled) / 2 else ""


def _file_part(ref: str) -> str:
    """The file of a reference, without a row, an archive member or a fragment."""
    return ARCHIVE.sub(r"\1", FRAGMENT.sub("", ref))


class _Resolver:
    """Says whether files lie below the root, links resolved; folders are resolved once."""

    def __init__(self, root: Path, allow_outside: bool):
        self.root, self.allow_outside = root, allow_outside
        self.real_root = os.path.realpath(root)
        self._real_folder = cache(os.path.realpath)

    def below(self, file: Path) -> bool:
        real = os.path.join(self._real_folder(file.parent), file.name)
        if os.path.islink(real) or file.name in ("", ".."):
            real = os.path.realpath(file)
        return os.path.commonpath([real, self.real_root]) == self.real_root

    def look_up(self, name: str) -> tuple[bool, bool]:
        """(below the root, a file); a name that can be none, too long or with a NUL, is no file."""
        try:
            return self.below(self.root / name), (self.root / name).is_file()
        except (OSError, ValueError):
            return True, False

    def kind_of_file(self, cell: str) -> str:
        """The kind of the file that a cell names; `text` where it names none, "" where its content says nothing."""
        below, there = self.look_up(_file_part(cell))
        if not there:
            return "text"
        if not below and not self.allow_outside:
            return "text_file"  # not looked into; it will be refused
        try:
            with open(self.root / _file_part(cell), "rb") as file:
                return kind_of_content(file.read(HEAD_BYTES))
        except OSError:
            return ""


def _add(found: _common.Scan, row: dict[str, str], where: str, resolver: _Resolver) -> list[str]:
    """Add one row of the table; returns the paths that lead outside of the root."""
    split = row.get("split", "").lower()
    if split and split not in SPLIT_WORDS:
        found.problem("bad_row", row["id"], "", where, f"split `{row['split']}` is none of train, val, test; not used")
    found.add(row["id"], row.get("label", ""), row.get("group", ""), SPLIT_WORDS.get(split, ""))
    refs, outside = found.rows[row["id"]], list[str]()
    for modality, kind in found.modalities.items():
        cell = row[modality]
        if not cell or kind == "text":
            refs[f"ref.{modality}"] = cell or None
            continue
        name = _file_part(cell)
        file = resolver.root / name
        below, there = resolver.look_up(name)
        if not below and not resolver.allow_outside:
            outside.append(cell)
        elif not there:
            found.problem("missing", row["id"], modality, name, f"no such file ({where})")
        else:
            # References start at the root and never climb.
            climbs = below and (os.path.isabs(name) or ".." in file.parts)
            kept = os.path.relpath(os.path.realpath(file), resolver.real_root) if climbs else name
            refs[f"ref.{modality}"] = kept + cell[len(name) :]
    return outside
