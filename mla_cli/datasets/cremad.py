"""CREMA-D: 7,442 clips (2-3 s) of 91 actors saying 12 sentences in six emotions.

Audio 16 kHz mono WAV; video 30 frames a second, FLV. A clip's name is ACTOR_SENTENCE_EMOTION_LEVEL, its group is the
actor. The videos come through Git LFS, so a plain clone holds small text pointers instead. `1076_MTI_SAD_XX.wav` is
known to be silent. `actor` and `actor_fold` keep every actor on one side; `random`, which is what all published lists
amount to, has all actors on both sides. Fold k of `actor_fold` tests on the k-th of five sets of actors.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from mla_cli.data import splits
from mla_cli.data.kinds import AUDIO_SUFFIXES, VIDEO_SUFFIXES
from mla_cli.data.manifest import Manifest
from mla_cli.datasets import _common

TITLE = "CREMA-D"
CITATION = """H. Cao, D. G. Cooper, M. K. Keutmann, R. C. Gur, A. Nenkova and R. Verma, CREMA-D: Crowd-sourced Emotional
Multimodal Actors Dataset, IEEE Transactions on Affective Computing 5(4), 2014, pages 377-390.
https://doi.org/10.1109/TAFFC.2014.2336244"""
LICENSE = "ODbL-1.0"
TERMS = "Open Database License (contents: Database Contents License); no registration."
SOURCE = """https://github.com/CheyneyComputerScience/CREMA-D: install Git LFS first, then clone and run `git lfs pull`
inside the clone, which fetches the recordings."""
ATTRIBUTION = ""
CLASSES = ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")
MODALITIES = {"audio": "audio", "visual": "video"}
TREE = """AudioWAV/1001_DFA_ANG_XX.wav
VideoFlash/1001_DFA_ANG_XX.flv"""
PROTOCOLS = {
    "actor": "70/10/20 by actor: nobody is heard or seen on two sides",
    "actor_fold": "fold k of 5 by actor is test, half of the next fold val",
    "random": "90/10 by clip, val carved from train; all actors are on both sides, as in published lists",
    "file": "published lists, with --split-file",
}
SAMPLES = 7442  # clips published
SILENT = "1076_MTI_SAD_XX"


def scan(root: Path) -> Manifest:
    """One row per clip of which a WAV or a video was found."""
    found = _common.start(root, MODALITIES)
    base = _common.base_with(root, "AudioWAV", "VideoFlash")
    if base is None:
        raise _common.not_this(root, TITLE, TREE)
    audio = _common.media_files(found, _common.child(base, "AudioWAV"), AUDIO_SUFFIXES, "audio")
    visual = _common.media_files(found, _common.child(base, "VideoFlash"), VIDEO_SUFFIXES, "visual")
    for modality, paths in (("audio", audio), ("visual", visual)):
        for path in paths:
            clip = _common.id_of(path)
            parts = clip.split("_")
            if len(parts) != 4 or not all(parts):
                found.problem("bad_row", clip, modality, path, "the name is not ACTOR_SENTENCE_EMOTION_LEVEL")
            elif parts[2].upper() not in CLASSES:
                found.problem("unknown_label", clip, modality, path, f"`{parts[2]}` is none of {', '.join(CLASSES)}")
            else:
                found.add(clip, parts[2].upper(), parts[0])
                found.put(clip, modality, path)
    if len(found.rows) != SAMPLES:
        found.notes.append(f"{len(found.rows)} clips found; the published set has {SAMPLES}")
    if SILENT in found.rows:
        found.notes.append(f"`{SILENT}.wav` is silent in the published set")
    return found.manifest(CLASSES, {"audio": "AudioWAV/{id}.wav", "visual": "VideoFlash/{id}.flv"})


def split(rows: pd.DataFrame, protocol: str, seed: int, fold: int) -> np.ndarray:
    """The split of every row; see PROTOCOLS."""
    if protocol == "actor_fold":
        return splits.group_folds(rows, 5, fold, seed)
    splits.check_fold(fold, 1)
    match protocol:
        case "actor":
            return splits.by_group(rows, (0.7, 0.1, 0.2), seed)
        case "random":
            return splits.carve_val(splits.stratified(rows, (0.9, 0.0, 0.1), seed), rows, 0.1, seed)
    raise splits.unknown_protocol(protocol, PROTOCOLS)
