"""MVSA-Single: tweets, each a picture (visual) and its text, with sentiment labels of one annotator.

The annotator labelled text and picture apart. As everybody does: a tweet with one positive and one negative label is
left out; where one label is neutral, the other counts. Texts are often latin-1; they are read as UTF-8 first. There are
no groups and no folds. Circulating lists: QMF's (1,555/518/519) and MLA's (1,555/519); 32 of MLA's test items are QMF
validation items, so never mix lists of the two families.
"""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from mla_cli.data import splits
from mla_cli.data.kinds import IMAGE_SUFFIXES
from mla_cli.data.manifest import Manifest
from mla_cli.datasets import _common
from mla_cli.errors import MlaError

TITLE = "MVSA-Single"
CITATION = """T. Niu, S. Zhu, L. Pang and A. El Saddik, Sentiment analysis on multi-view social data, MultiMedia
Modeling (MMM), 2016, Lecture Notes in Computer Science 9517, pages 15-27."""
LICENSE = "LicenseRef-MVSA"
TERMS = "For research; pictures and texts belong to the authors of the tweets."
SOURCE = "https://mcrlab.net/research/mvsa-sentiment-analysis-on-multi-view-social-data/ (MVSA-Single)."
ATTRIBUTION = ""
CLASSES = ("positive", "neutral", "negative")
MODALITIES = {"visual": "image", "text": "text_file"}
SAMPLES = 1555 + 518 + 519  # of QMF's lists; the folder holds more
TREE = """labelResultAll.txt           ID<TAB>text label,image label
data/ID.jpg
data/ID.txt"""
PROTOCOLS = {
    "random": "60/20/20 within each class, drawn with the split seed",
    "file": "published lists (QMF's or MLA's, not both), with --split-file",
}


def scan(root: Path) -> Manifest:
    """One row per label that stands; problems for labels without files and files without a label."""
    found = _common.start(root, MODALITIES)
    base = _common.base_with(root, "labelResultAll.txt")
    labels = _common.child(base, "labelResultAll.txt") if base else None
    data = _common.child(base, "data") if base else None
    if labels is None or data is None:
        raise _common.not_this(root, TITLE, TREE)
    dropped = _read_labels(found, labels)
    pictures = _common.media_files(found, data, IMAGE_SUFFIXES, "visual")
    texts = _common.media_files(found, data, {".txt"}, "text")
    unlabelled = {p.id for p in found.problems if p.kind in ("unknown_label", "bad_row")} | dropped
    for modality, paths, fragment in (("visual", pictures, ""), ("text", texts, "#encoding=latin-1")):
        for path in paths:
            name = _common.id_of(path)
            if name in found.rows:
                found.put(name, modality, path, fragment)
            elif name not in unlabelled:
                found.problem("unknown_label", name, modality, path, f"no row in {labels.name}")
    if dropped:
        found.notes.append(f"{len(dropped)} tweets left out: one label is positive, the other negative")
    folder = _common.braced(data.relative_to(root).as_posix())
    return found.manifest(CLASSES, {"visual": f"{folder}/{{id}}.jpg", "text": f"{folder}/{{id}}.txt"})


def _read_labels(found: _common.Scan, path: Path) -> set[str]:
    """Add a row per usable label; returns the ids whose two labels contradict each other."""
    dropped = set[str]()
    for number, line in _common.read_lines(path):
        where = f"{path.relative_to(found.root).as_posix()}, line {number}"
        fields = [part.strip() for part in re.split(r"[\t,]", line)]
        if number == 1 and fields[0].lower() == "id":
            continue
        if len(fields) > 3:
            raise MlaError(
                f"{where}: `{line.strip()[:80]}` has labels of {len(fields) // 2} annotators, MVSA-Single has one",
                "this looks like MVSA-Multiple; MVSA-Single is a separate download",
            )
        if len(fields) < 3 or not fields[0]:
            found.problem("bad_row", fields[0], "", where, f"expected ID<TAB>label,label, got `{line.strip()[:80]}`")
            continue
        name, pair = fields[0], [label.lower() for label in fields[1:]]
        unknown = [label for label in pair if label not in CLASSES]
        if unknown:
            found.problem("unknown_label", name, "", where, f"`{unknown[0]}` is none of {', '.join(CLASSES)}")
        elif name in found.rows or name in dropped:
            found.problem("duplicate_id", name, "", where, "a second label; the first one stays")
        elif set(pair) == {"positive", "negative"}:
            dropped.add(name)
        else:
            found.add(name, pair[0] if pair[0] != "neutral" else pair[1])
    return dropped


def split(rows: pd.DataFrame, protocol: str, seed: int, fold: int) -> np.ndarray:
    """The split of every row; see PROTOCOLS."""
    splits.check_fold(fold, 1)
    if protocol != "random":
        raise splits.unknown_protocol(protocol, PROTOCOLS)
    return splits.stratified(rows, (0.6, 0.2, 0.2), seed)
