"""What train, val and test share although they should not: groups (speakers, dialogues, videos) and identical files.

The report is made for every protocol and stored with the run; it judges, it never moves a sample.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from mla_cli.data.splits import SPLITS

PAIRS = (("train", "test"), ("val", "test"), ("train", "val"))
# Columns that name who or what a sample was taken from, as the data sets call them.
GROUP_COLUMNS = ("group", "actor", "speaker", "dialogue", "session")
FIRST = 5  # examples kept of every finding


def leakage_report(
    rows: pd.DataFrame, split: np.ndarray, hashes: Mapping[str, np.ndarray] | None = None
) -> dict[str, Any]:
    """Findings as plain JSON values.

    rows: `id`, `label`, `group` and, where a data set has them, further GROUP_COLUMNS. split: (row,), see
    `data/splits.py`. hashes: modality -> (row,) content hash as text, "" or None where the modality is absent.

    Returns `samples` per split; `balance` per split and class; `groups`: column -> numbers per split and, per pair of
    splits, how many groups are in both; `identical`: modality -> per pair of splits, how many samples of the second
    have an equal file in the first; `leaks`: True if test shares anything with train or val.
    """
    samples = {name: int((split == name).sum()) for name in SPLITS}
    labels = rows["label"].to_numpy(object)
    classes = sorted(set(labels))
    balance = {name: {c: int(((split == name) & (labels == c)).sum()) for c in classes} for name in SPLITS}
    groups = {}
    for column in GROUP_COLUMNS:
        if column in rows and (rows[column].notna() & (rows[column] != "")).any():
            groups[column] = _shared_groups(rows[column], split)
    identical = {modality: _identical(rows["id"], values, split) for modality, values in (hashes or {}).items()}
    counts = [part[f"{a}+{b}"]["count"] for part in (*groups.values(), *identical.values()) for a, b in PAIRS[:2]]
    return {
        "samples": samples,
        "balance": balance,
        "groups": groups,
        "identical": identical,
        "leaks": any(counts),
    }


def leaks_into_test(report: Mapping[str, Any]) -> list[str]:
    """Only the findings that make test numbers too good: what test shares with train or val."""
    return [line for line in leakage_lines(report) if " of test " in line]


def leakage_lines(report: Mapping[str, Any]) -> list[str]:
    """The report in plain words, one finding a line; what leaks into test first."""
    lines = []
    for column, part in report["groups"].items():
        name = "groups" if column == "group" else f"groups by {column}"
        for first, second in PAIRS:
            found = part[f"{first}+{second}"]
            if found["count"]:
                total = part["number"][second]
                lines.append(
                    f"{found['count']} of {total} {name} of {second} are in {first} too (first: {found['first'][0]})"
                )
        if not any(part[f"{a}+{b}"]["count"] for a, b in PAIRS):
            numbers = "/".join(str(part["number"][split]) for split in SPLITS)
            lines.append(f"{name} are on one side only (train/val/test: {numbers})")
    for modality, part in report["identical"].items():
        for first, second in PAIRS:
            found = part[f"{first}+{second}"]
            if found["count"]:
                one, other = found["first"][0]
                lines.append(
                    f"{found['count']} {modality} files of {second} are identical to one of {first} "
                    f"(first: {other} = {one})"
                )
        if not any(part[f"{a}+{b}"]["count"] for a, b in PAIRS):
            lines.append(f"no identical {modality} files on two sides")
    lines.sort(key=lambda line: (" of test are" not in line, " are in " not in line and " identical to " not in line))
    for split, counts in report["balance"].items():
        filled = {label: n for label, n in counts.items() if n} or {"": 0}
        small, large = min(filled, key=filled.__getitem__), max(filled, key=filled.__getitem__)
        lines.append(
            f"{split}: {report['samples'][split]} samples; largest class {large} ({filled[large]}), "
            f"smallest {small} ({filled[small]})"
        )
    return lines


def _shared_groups(values: pd.Series, split: np.ndarray) -> dict[str, Any]:
    names = values.fillna("").to_numpy(object)
    sets = {name: set(names[split == name]) - {""} for name in SPLITS}
    part: dict[str, Any] = {"number": {name: len(found) for name, found in sets.items()}}
    for first, second in PAIRS:
        shared = sorted(sets[first] & sets[second])
        part[f"{first}+{second}"] = {"count": len(shared), "first": shared[:FIRST]}
    return part


def _identical(ids: pd.Series, hashes: np.ndarray, split: np.ndarray) -> dict[str, Any]:
    names, values = ids.to_numpy(object), np.asarray(hashes, dtype=object)
    there = np.array([bool(value) and value == value for value in values])  # NaN, as pandas writes None, is absent
    order = np.argsort(names.astype(str))
    holder = {name: dict[str, str]() for name in SPLITS}  # split -> hash -> first id
    for i in order:
        if there[i] and split[i]:
            holder[split[i]].setdefault(values[i], names[i])
    part: dict[str, Any] = {}
    for first, second in PAIRS:
        twins = [
            [holder[first][values[i]], names[i]]
            for i in order
            if there[i] and split[i] == second and values[i] in holder[first]
        ]
        part[f"{first}+{second}"] = {"count": len(twins), "first": twins[:FIRST]}
    return part
