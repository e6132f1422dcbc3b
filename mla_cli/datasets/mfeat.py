"""UCI Multiple Features: 2,000 handwritten digits, each described by six feature vectors ("views"), built in.

Natural: row i is the same digit in all six. Widths: mor 6, fou 76, zer 47, kar 64, fac 216, pix 240; spreads differ by
a factor of 100,000, so normalise per column. Six pairs of rows are equal in all views; each pair is one group and every
protocol keeps it on one side. There are no folds.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from mla_cli.data import splits
from mla_cli.data.manifest import Manifest
from mla_cli.datasets import _common
from mla_cli.errors import MlaError

BUILT_IN = True
TITLE = "Multiple Features (UCI)"
CITATION = """R. Duin (1998). Multiple Features [Dataset]. UCI Machine Learning Repository.
https://doi.org/10.24432/C5HC70. Described in M. van Breukelen, R. P. W. Duin, D. M. J. Tax and J. E. den Hartog,
Handwritten digit recognition by combined classifiers, Kybernetika 34(4), 1998, pages 381-386."""
LICENSE = "CC-BY-4.0"
TERMS = "Free to use, change and share with attribution."
SOURCE = "Built in: nothing to download."
ATTRIBUTION = """Multiple Features by Robert Duin, UCI Machine Learning Repository, https://doi.org/10.24432/C5HC70,
  CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/). Changed: stored as 32-bit floats in NumPy files; the split
  was added."""
CLASSES = tuple(str(digit) for digit in range(10))
MODALITIES = dict.fromkeys(("mor", "fou", "zer", "kar", "fac", "pix"), "vector")
TREE = """metadata.csv                 id,label,split
mor.npz fou.npz zer.npz kar.npz fac.npz pix.npz      one array `x` each, row i = sample i"""
PROTOCOLS = {
    "shipped": "the shipped split, 1,000/400/600, every class 100/40/60",
    "random": "50/20/30 within each class, equal rows on one side, drawn with the split seed",
}


def scan(root: Path) -> Manifest:
    """Read `metadata.csv`; a view's reference is a row of its array. Ids are padded so that they sort as numbers."""
    found = _common.start(root, MODALITIES)
    if not (root / "metadata.csv").is_file() or not all((root / f"{view}.npz").is_file() for view in MODALITIES):
        raise _common.not_this(root, TITLE, TREE)
    table = pd.read_csv(root / "metadata.csv", dtype=str, keep_default_na=False)
    views = [np.load(root / f"{view}.npz", allow_pickle=False)["x"] for view in MODALITIES]
    if any(len(view) != len(table) for view in views):
        raise MlaError(f"the views below `{root}` differ in length", "restore the shipped files")
    # Numbers equal rows by their first occurrence: twins get a group of their own.
    _, first, same, count = np.unique(
        np.concatenate(views, axis=1), axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    same = same.reshape(-1)
    for i, row in enumerate(table.to_dict("records")):
        group = f"equal-{first[same[i]]:04d}" if count[same[i]] > 1 else ""
        found.add(f"{int(row['id']):04d}", row["label"], group, row["split"])
        found.rows[f"{int(row['id']):04d}"] |= {f"ref.{view}": f"{view}.npz::{i}" for view in MODALITIES}
    return found.manifest(CLASSES, {})


def split(rows: pd.DataFrame, protocol: str, seed: int, fold: int) -> np.ndarray:
    """The split of every row; see PROTOCOLS."""
    splits.check_fold(fold, 1)
    match protocol:
        case "shipped":
            return splits.official(rows)
        case "random":
            return splits.by_group(rows, (0.5, 0.2, 0.3), seed)
    raise splits.unknown_protocol(protocol, PROTOCOLS)
