"""Emoji: 1,636 emoji, each a drawing (visual, 48 x 48 pixels) and its English name (text), in 8 groups (built in).

Natural pairs: both modalities belong to one emoji. The text is the CLDR name alone; `keywords` would let the text
dominate and stay an extra column. The group is the emoji's family (1,241 of them: near-equal names or drawings), and
every protocol keeps a family on one side. Classes are unbalanced (85 to 386 emoji). There are no folds.
"""

import zipfile
from pathlib import Path

import numpy as np
import pandas as pd

from mla_cli.data import splits
from mla_cli.data.manifest import Manifest
from mla_cli.datasets import _common

BUILT_IN = True
TITLE = "Emoji (Noto drawings and CLDR names)"
CITATION = """Noto Emoji, version 2.048. Google Inc. and the other Noto Emoji authors,
https://github.com/googlefonts/noto-emoji. Names, keywords and groups: Unicode CLDR 48, by way of emojibase-data 17.0.0
(https://emojibase.dev)."""
LICENSE = "Apache-2.0 AND MIT AND Unicode-3.0"
TERMS = "Free to use, change and share with the notices in mla_cli/demo/emoji: drawings Apache-2.0, names Unicode-3.0."
SOURCE = "Built in: nothing to download."
ATTRIBUTION = ""
CLASSES = (
    "activities",
    "animals-nature",
    "food-drink",
    "objects",
    "people-body",
    "smileys-emotion",
    "symbols",
    "travel-places",
)
MODALITIES = {"visual": "image", "text": "text"}
TREE = """metadata.csv                 id,visual,text,keywords,label,subgroup,split,family
visual.zip                   visual/1F600.png, ..."""
PROTOCOLS = {
    "shipped": "the shipped split, 980/328/328, families on one side",
    "random": "60/20/20 within each class, families on one side, drawn with the split seed",
}


def scan(root: Path) -> Manifest:
    """Read `metadata.csv`; the drawings are members of `visual.zip`."""
    found = _common.start(root, MODALITIES)
    if not (root / "metadata.csv").is_file() or not (root / "visual.zip").is_file():
        raise _common.not_this(root, TITLE, TREE)
    table = pd.read_csv(root / "metadata.csv", dtype=str, keep_default_na=False)
    with zipfile.ZipFile(root / "visual.zip") as archive:
        drawings = set(archive.namelist())
    for row in table.to_dict("records"):
        extra = {"family": row["family"], "subgroup": row["subgroup"], "keywords": row["keywords"]}
        found.add(row["id"], row["label"], f"{row['label']}/{row['family']}", row["split"], **extra)
        found.rows[row["id"]]["ref.text"] = row["text"]
        if row["visual"] in drawings:
            found.rows[row["id"]]["ref.visual"] = f"visual.zip::{row['visual']}"
    return found.manifest(CLASSES, {"visual": "visual.zip::visual/{id}.png"})


def split(rows: pd.DataFrame, protocol: str, seed: int, fold: int) -> np.ndarray:
    """The split of every row; see PROTOCOLS."""
    splits.check_fold(fold, 1)
    match protocol:
        case "shipped":
            return splits.official(rows)
        case "random":
            return splits.by_group(rows, (0.6, 0.2, 0.2), seed)
    raise splits.unknown_protocol(protocol, PROTOCOLS)
