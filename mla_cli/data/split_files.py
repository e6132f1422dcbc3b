"""Published split lists, in the three formats in circulation.

- `1001_DFA_ANG_XX,ANG`: CSV, as OGM-GE's (an optional third field names the split);
- `1012_MTI_SAD_XX.flv Sad` or `Ses02M_impro08_M021.mp4 [split|sign] TRANSCRIPT [split|sign] Neutral`: text, as MLA's;
- `{"id": ..., "img": "data/123.jpg", "text": ..., "label": ...}`: JSON lines, as MMBT's and QMF's.

The format is read off each file's first line; the split off its name (`train`, `val` or `dev`, `test`). Samples are
matched by stem: the name without folders and without a media extension.
"""

import csv
import json
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from mla_cli.data.kinds import SUFFIX_KINDS
from mla_cli.data.splits import SPLITS, carve_val
from mla_cli.errors import MlaError
from mla_cli.files import read_at_most

MAX_LIST_BYTES = 2**27  # the longest published list has 13 MB
SIGN = "[split|sign]"
WARNING = "warning: "  # how a note begins that `mla train` repeats as a warning
FAMILIES = {"csv": "OGM-GE style", "txt": "MLA style", "jsonl": "MMBT/QMF style"}
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
LIST_SUFFIXES = {".csv", ".txt", ".jsonl", ".json"}
MEDIA_SUFFIXES = frozenset(SUFFIX_KINDS)
HEADERS = {"id", "stem", "name", "file", "filename", "video", "image"}


@dataclass(frozen=True)
class ListEntry:
    """One line of a list: `stem` as it is matched, the split of its list and the label as written ("" for none)."""

    stem: str
    split: str
    label: str


@dataclass
class SplitLists:
    """All lists of one `--split-file`: their entries in file order, one format per file read, and what to tell."""

    entries: list[ListEntry] = field(default_factory=list)
    formats: dict[str, str] = field(default_factory=dict)  # file -> csv, txt or jsonl
    notes: list[str] = field(default_factory=list)


def stem_of(name: str) -> str:
    """What a list entry and a sample's id have in common.

    >>> stem_of("data/4141.JPG"), stem_of("1001_DFA_ANG_XX"), stem_of("v1.5_clip")
    ('4141', '1001_DFA_ANG_XX', 'v1.5_clip')
    """
    path = PurePosixPath(unicodedata.normalize("NFC", name.strip().replace("\\", "/")))
    return path.stem if path.suffix.lower() in MEDIA_SUFFIXES else path.name


def read_split_file(where: str | Path) -> SplitLists:
    """Read one list, a folder of lists, or several lists joined by commas.

    Raises MlaError for a list that does not exist, does not say which split it is, or has unreadable lines.
    """
    lists, seen = SplitLists(), dict[str, Path]()
    for path in _list_paths(str(where), lists.notes):
        split = split_in_name(path)
        if split and split in seen:
            raise MlaError(
                f"`{seen[split]}` and `{path}` are both lists of `{split}`",
                "name one list per split: `a.csv,b.csv`",
            )
        if split:
            seen[split] = path
        entries, form = _read_list(path, split)
        lists.entries += entries
        lists.formats[str(path)] = form
    families = sorted(set(lists.formats.values()))
    if len(families) > 1:
        named = " and ".join(FAMILIES[form] for form in families)
        lists.notes.append(
            f"{WARNING}lists of different families are mixed ({named}); their splits overlap in public releases "
            "(32 of MLA's MVSA test items are validation items of QMF)"
        )
    return lists


def split_in_name(path: Path) -> str:
    """`train`, `val`, `test`, or "" where the file's name says none or more than one.

    >>> split_in_name(Path("my_Dev.jsonl")), split_in_name(Path("train_test.csv"))
    ('val', '')
    """
    name = path.stem.lower()
    found = {SPLIT_WORDS[word] for word in ("train", "val", "dev", "test") if word in name}
    return found.pop() if len(found) == 1 else ""


@dataclass
class SplitFileReport:
    """How lists and data fit: ids in file order, each as written on the list or in the manifest."""

    listed: dict[str, int]  # split -> number of lines
    not_on_disk: list[str] = field(default_factory=list)
    not_listed: list[str] = field(default_factory=list)
    on_two_lists: list[str] = field(default_factory=list)
    other_label: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """What to tell the user, most important first; nothing left out that changes who is in which split."""
        facts = [
            (self.not_on_disk, "on a list but not on disk"),
            (self.not_listed, "on disk but on no list (unused)"),
            (
                self.on_two_lists,
                "on the lists of two splits (kept in test, else in val)",
            ),
            (self.other_label, "with another label on the list (ours is kept)"),
        ]
        told = [f"{len(ids)} samples {what}; first: {', '.join(ids[:3])}" for ids, what in facts if ids]
        return [
            f"lists: {', '.join(f'{n} {name}' for name, n in self.listed.items())}",
            *told,
            *self.notes,
        ]


def apply_split_file(
    rows: pd.DataFrame, lists: SplitLists, seed: int, val_share: float = 0.1
) -> tuple[np.ndarray, SplitFileReport]:
    """The split that lists name (see `read_split_file`), matched by stem, and how well lists and data fit.

    Where no list is one of val, `val_share` of the training samples are carved out, stratified by class.
    """
    stems = pd.Series([stem_of(name) for name in rows["id"]])
    where = {stem: i for i, stem in enumerate(stems)}
    shared = set(stems[stems.duplicated(keep=False)])
    names, labels = rows["id"].to_numpy(object), rows["label"].to_numpy(object)
    classes = {label.casefold() for label in labels}
    split = np.full(len(rows), "", dtype=object)
    report = SplitFileReport({name: sum(e.split == name for e in lists.entries) for name in SPLITS})
    for entry in lists.entries:
        i = where.get(entry.stem)
        if i is None or entry.stem in shared:
            report.not_on_disk.append(entry.stem)
            continue
        if split[i] and split[i] != entry.split:
            report.on_two_lists.append(names[i])
        # A sample on two lists serves the split that must stay clean: test, else val.
        split[i] = max(split[i], entry.split, key=("", *SPLITS).index)
        if entry.label.casefold() in classes - {labels[i].casefold()}:
            report.other_label.append(names[i])
    report.not_listed = list(names[split == ""])
    report.notes += lists.notes
    if shared & {entry.stem for entry in lists.entries}:
        report.notes.append(f"{WARNING}{len(shared)} names stand for several samples and were not matched")
    if not (split != "").any():
        raise MlaError(
            f"none of the {len(lists.entries)} listed samples is in these data (first: `{lists.entries[0].stem}`)",
            f"ids look like `{names[0]}`" if len(names) else "prepare the data first",
        )
    if not report.listed["val"] and (split == "train").any():
        split = carve_val(split, rows, val_share, seed)
        report.notes.append(f"no validation list: {(split == 'val').sum()} training samples carved out, seed {seed}")
    return split, report


def _list_paths(where: str, notes: list[str]) -> list[Path]:
    path = Path(where)
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.is_file() and p.suffix.lower() in LIST_SUFFIXES)
        lists = [p for p in files if split_in_name(p)]
        if not lists:
            raise MlaError(
                f"no split list in `{path}`",
                "name them train.csv, val.csv, test.csv (or .txt, .jsonl)",
            )
        ignored = [p.name for p in files if p not in lists]
        if ignored:
            notes.append(f"ignored in `{path}`, whose names say no split: {', '.join(ignored)}")
        return lists
    paths = [path] if path.is_file() else [Path(part.strip()) for part in where.split(",") if part.strip()]
    for path in paths:
        if not path.is_file():
            raise MlaError(
                f"no split list `{path}`",
                "give a file, a folder, or files joined by commas",
            )
    if not paths:
        raise MlaError(
            "`--split-file` is empty",
            "give a file, a folder, or files joined by commas",
        )
    return paths


def _read_list(path: Path, split: str) -> tuple[list[ListEntry], str]:
    lines = [(number, line) for number, line in _lines(path) if line.strip()]
    if not lines:
        raise MlaError(
            f"the split list `{path}` is empty",
            "give one sample per line, such as `1001_DFA_ANG_XX,ANG`",
        )
    form = _format(lines[0][1])
    entries, bad = list[ListEntry](), list[tuple[int, str, str]]()
    for number, line in lines:
        try:
            name, label, own_split = _PARSERS[form](line)
        except ValueError as error:
            bad.append((number, line.strip(), str(error)))
            continue
        if form == "csv" and number == lines[0][0] and name.lower() in HEADERS:
            continue
        if not (own_split or split):
            raise MlaError(
                f"`{path}` does not say which split it lists",
                "put `train`, `val` or `test` (only one of them) into its name, or add a third field with the split",
            )
        entries.append(ListEntry(stem_of(name), own_split or split, label))
    if bad:
        number, value, reason = bad[0]
        more = f" (and {len(bad) - 1} more bad lines)" if len(bad) > 1 else ""
        shown = value if len(value) <= 80 else value[:77] + "..."
        raise MlaError(
            f"{path}, line {number}: {reason}: `{shown}`{more}",
            f"the first line makes this a {FAMILIES[form]} list; every line must be of that form",
        )
    return entries, form


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    for number, raw in enumerate(read_at_most(path, MAX_LIST_BYTES, "split list").split(b"\n"), 1):
        try:
            yield (
                number,
                raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r"),
            )
        except UnicodeDecodeError:
            shown = raw.decode("utf-8", "backslashreplace").strip()[:80]
            raise MlaError(
                f"{path}, line {number}: not UTF-8: `{shown}`",
                "save the list as UTF-8, e.g. with `iconv -t utf-8`",
            ) from None


def _format(first: str) -> str:
    if first.lstrip().startswith("{"):
        return "jsonl"
    return "csv" if "," in first and SIGN not in first else "txt"


def _parse_csv(line: str) -> tuple[str, str, str]:
    try:
        fields = [part.strip() for part in next(csv.reader([line]), [])]
    except csv.Error as error:
        raise ValueError(str(error).partition(" - ")[0]) from None
    if len(fields) not in (2, 3) or not fields[0]:
        raise ValueError("expected `stem,label`")
    if len(fields) == 2:
        return fields[0], fields[1], ""
    if fields[2].lower() not in SPLIT_WORDS and fields[0].lower() not in HEADERS:
        raise ValueError("the third field must be train, val or test")
    return fields[0], fields[1], SPLIT_WORDS.get(fields[2].lower(), "")


def _parse_txt(line: str) -> tuple[str, str, str]:
    parts = line.split(SIGN) if SIGN in line else line.strip().split(maxsplit=1)
    if len(parts) not in (2, 3) or not parts[0].strip() or not parts[-1].strip():
        raise ValueError(f"expected `name label` or `name {SIGN} TEXT {SIGN} label`")
    return parts[0].strip(), parts[-1].strip(), ""


def _parse_jsonl(line: str) -> tuple[str, str, str]:
    try:
        record = dict(json.loads(line).items())
    except (json.JSONDecodeError, RecursionError, AttributeError):
        raise ValueError("not a JSON object") from None
    # The image's name is what is on disk; `id` may be a running number.
    name = record.get("img") or record.get("id")
    if not isinstance(name, str | int) or isinstance(name, bool) or not str(name).strip():
        raise ValueError('no "img" or "id"')
    own_split = record.get("split", "")
    if not isinstance(own_split, str) or own_split.lower() not in {*SPLIT_WORDS, ""}:
        raise ValueError('"split" must be train, val or test')
    label = record.get("label", "")
    return str(name), label if isinstance(label, str) else str(label), SPLIT_WORDS.get(own_split.lower(), "")


_PARSERS = {"csv": _parse_csv, "txt": _parse_txt, "jsonl": _parse_jsonl}
