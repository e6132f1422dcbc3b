"""Kinetics-Sounds: the Kinetics-400 clips (10 s, from YouTube) of 31 actions that can be seen and heard.

Some 19,000 clips survive. Audio and video come from the same file, at the rates of the upload. Two layouts, alone or
together: trimmed clips `SPLIT/CLASS/YOUTUBEID_000012_000022.mp4`, and Kinetics annotation files
(`label,youtube_id,time_start,time_end,split`) beside trimmed or whole videos; a whole video is cut at the annotated
seconds. Where both name a class or split, the annotation counts. The published lists of classes differ: `ks31`
(default), `ks32` (`--classes ks32`), or any names (`--classes FILE`, one a line); the 34 of the paper of 2017 are not
certain, so they are not among ours. Clips of other Kinetics classes are counted, not listed. The group is the
YouTube video; there are no folds.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from mla_cli import registry
from mla_cli.data import splits
from mla_cli.data.kinds import VIDEO_SUFFIXES
from mla_cli.data.manifest import Manifest, relative_ref
from mla_cli.datasets import _common
from mla_cli.errors import MlaError

TITLE = "Kinetics-Sounds"
CITATION = """R. Arandjelovic and A. Zisserman, Look, listen and learn, IEEE International Conference on Computer Vision
(ICCV), 2017. Clips: W. Kay et al., The Kinetics human action video dataset, 2017, arXiv 1705.06950."""
LICENSE = "CC-BY-4.0 AND LicenseRef-YouTube-uploads"
TERMS = "Annotations CC BY 4.0; the videos belong to their uploaders and follow YouTube's terms."
SOURCE = """https://github.com/cvdfoundation/kinetics-dataset hosts Kinetics-400 (clips and annotations); only the
folders of the classes are needed."""
ATTRIBUTION = ""
_KS31 = (
    "blowing nose,blowing out candles,bowling,chopping wood,dribbling basketball,laughing,mowing lawn,"
    "playing accordion,playing bagpipes,playing bass guitar,playing clarinet,playing drums,playing guitar,"
    "playing harmonica,playing keyboard,playing organ,playing piano,playing saxophone,playing trombone,"
    "playing trumpet,playing violin,playing xylophone,ripping paper,shoveling snow,shuffling cards,singing,"
    "stomping grapes,tap dancing,tapping guitar,tapping pen,tickling"
)
CLASS_LISTS = {
    "ks31": tuple(_KS31.split(",")),
    "ks32": (*_KS31.split(","), "strumming guitar"),
}
CLASSES = CLASS_LISTS["ks31"]
MODALITIES = {"audio": "audio", "visual": "video"}
SAMPLES = 19_000  # about; what survives of the clips
TREE = """train/playing guitar/YOUTUBEID_000012_000022.mp4     SPLIT/CLASS/..., SPLIT train, val or test
annotations/train.csv                                optional: label,youtube_id,time_start,time_end,split"""
PROTOCOLS = {
    "official": "Kinetics' train and val as train and test; val is a tenth of train, carved out by class",
    "random": "70/10/20 by YouTube video, drawn with the split seed",
    "file": "published lists, with --split-file",
}
FOLDER_SPLITS = {"train": "train", "val": "val", "validate": "val", "validation": "val", "test": "test"}
TRIMMED = re.compile(r"(.+)_(\d{6})_(\d{6})")
COLUMNS = {"label", "youtube_id", "time_start", "time_end"}


class Annotation(NamedTuple):
    """One line of an annotation file; times in seconds of the whole video."""

    label: str
    start: float
    end: float
    split: str
    where: str


def scan(root: Path, classes: str | Sequence[str] = "ks31") -> Manifest:
    """One row per clip on disk; annotated clips of our classes that are not on disk are `missing` problems.

    classes: a name of CLASS_LISTS or the class names themselves.
    """
    names = _class_names(classes)
    found = _common.start(root, MODALITIES)
    videos = _common.media_files(found, root, VIDEO_SUFFIXES)
    annotations = _read_annotations(found)
    if not videos:
        raise _common.not_this(root, TITLE, TREE)
    other, on_disk, no_label = Counter[str](), set[str](), list[Path]()
    for path in videos:
        name = _common.id_of(path)
        trimmed = TRIMMED.fullmatch(name)
        video = trimmed[1] if trimmed else name
        known = annotations.get(video, [])
        if trimmed:
            known = [a for a in known if (int(a.start), int(a.end)) == (int(trimmed[2]), int(trimmed[3]))]
        folder_label, folder_split = _from_folders(path.relative_to(root).parts[:-1])
        whole = Annotation(folder_label, 0.0, 0.0, folder_split, "")
        for note in known or [whole]:
            label, split = note.label or folder_label, note.split or folder_split
            clip = name if trimmed or not note.where else f"{video}_{int(note.start):06d}_{int(note.end):06d}"
            on_disk.add(f"{video}_{note.start:g}_{note.end:g}")
            if label not in names:
                other[label] += 1
                no_label += [path] if not label else []
                continue
            if clip in found.rows:
                held = found.rows[clip]["ref.visual"]
                found.problem("duplicate_id", clip, "", path, f"`{clip}` is already taken from `{held}`")
                continue
            found.add(clip, label, video, split)
            fragment = f"#t={note.start:g},{note.end:g}" if note.where and not trimmed else ""
            for modality in MODALITIES:
                found.put(clip, modality, path, fragment)
    for path in no_label:
        found.problem(
            "unknown_label", _common.id_of(path), "", path, "neither its folder nor an annotation names a class"
        )
    _missing(found, annotations, names, on_disk)
    _notes(found, other, names, len(videos))
    return found.manifest(names, {})


def _class_names(classes: str | Sequence[str]) -> tuple[str, ...]:
    if not isinstance(classes, str):
        return tuple(_plain(name) for name in classes)
    if classes not in CLASS_LISTS:
        raise MlaError(f"no class list `{classes}`", registry.did_you_mean(classes, list(CLASS_LISTS)))
    return CLASS_LISTS[classes]


def _plain(label: str) -> str:
    """Class names as in the lists: folders may use underscores, annotations quotes.

    >>> _plain(' "Playing_Guitar"')
    'playing guitar'
    """
    return " ".join(label.strip(' "').replace("_", " ").lower().split())


def _from_folders(parts: Sequence[str]) -> tuple[str, str]:
    """(class, split) that the folders of a file name; "" for what they do not."""
    split = next((FOLDER_SPLITS[part.lower()] for part in parts if part.lower() in FOLDER_SPLITS), "")
    label = _plain(parts[-1]) if parts and parts[-1].lower() not in FOLDER_SPLITS else ""
    return label, split


def _read_annotations(found: _common.Scan) -> dict[str, list[Annotation]]:
    """YouTube id -> its annotations, of every CSV file with the right header; bad lines are problems."""
    annotations = dict[str, list[Annotation]]()
    for path in _common.media_files(found, found.root, {".csv"}):
        lines, file = _common.read_lines(path), relative_ref(found.root, path)
        header = [name.lower() for name in _common.csv_cells(lines[0][1])] if lines else []
        if not set(header) >= COLUMNS:
            found.notes.append(f"`{file}` is no annotation file (columns {', '.join(sorted(COLUMNS))}) and not read")
            continue
        for number, line in lines[1:]:
            cells = dict(zip(header, _common.csv_cells(line), strict=False))
            where = f"{file}, line {number}"
            try:
                start, end = float(cells["time_start"]), float(cells["time_end"])
            except (KeyError, ValueError):
                start, end = math.nan, math.nan
            video, split = cells.get("youtube_id", ""), cells.get("split", "").lower()
            if not 0 <= start < end < math.inf or not video or not _common.is_text(line):
                found.problem("bad_row", video, "", where, f"expected {','.join(header)}, got `{line[:80]}`")
                continue
            label, split = _plain(cells["label"]), FOLDER_SPLITS.get(split, "")
            annotations.setdefault(video, []).append(Annotation(label, start, end, split, where))
    return annotations


def _missing(
    found: _common.Scan, annotations: dict[str, list[Annotation]], names: Sequence[str], on_disk: set[str]
) -> None:
    for video, notes in sorted(annotations.items()):
        for note in notes:
            if note.label in names and f"{video}_{note.start:g}_{note.end:g}" not in on_disk:
                clip = f"{video}_{int(note.start):06d}_{int(note.end):06d}"
                found.problem("missing", clip, "", note.where, f"no file of clip `{clip}` ({note.label})")


def _notes(found: _common.Scan, other: Counter[str], names: Sequence[str], num_videos: int) -> None:
    del other[""]  # listed as problems
    if other:
        first = ", ".join(f"`{label}`" for label, _ in other.most_common(5)) + (", ..." if len(other) > 5 else "")
        found.notes.append(f"{other.total()} clips of {len(other)} classes outside the {len(names)} left out: {first}")
    if not found.rows:
        raise MlaError(
            f"none of the {num_videos} videos below `{found.root}` is of a class of {TITLE}", f"expected:\n{TREE}"
        )
    without = sum(row["split"] == "" for row in found.rows.values())
    if without:
        found.notes.append(f"{without} clips without a split of Kinetics; protocol `official` does not use them")


def split(rows: pd.DataFrame, protocol: str, seed: int, fold: int) -> np.ndarray:
    """The split of every row; see PROTOCOLS."""
    splits.check_fold(fold, 1)
    match protocol:
        case "official":
            split = splits.official(rows)
            split[split == "val"] = "test"
            return splits.carve_val(split, rows, 0.1, seed)
        case "random":
            return splits.by_group(rows, (0.7, 0.1, 0.2), seed)
    raise splits.unknown_protocol(protocol, PROTOCOLS)
