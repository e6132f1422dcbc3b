"""IEMOCAP: 12 hours of ten actors in five two-person sessions; 5,531 utterances in four emotions are used.

Audio 16 kHz WAV per utterance; video 30 frames a second, one AVI per dialogue with both actors side by side; text from
the transcriptions. Excited counts as happy; other emotions are left out. The group of an utterance is its dialogue
(151 of them); session and speaker can be read off its name: Ses02M_impro08_F021 is session 2, the woman speaks, the man
wears the markers. Fold k of `session` tests on session k + 1 and validates on the next one, so nobody is on two sides.

Which half of the frame: the actor with the markers (the letter after the session) sits on the left, as public
preprocessing code for this set has it. We cut to the half of the actor who speaks; the annotated start and end times
cut the dialogue's video.
"""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from mla_cli.data import splits
from mla_cli.data.kinds import AUDIO_SUFFIXES, VIDEO_SUFFIXES
from mla_cli.data.manifest import Manifest, relative_ref
from mla_cli.datasets import _common

TITLE = "IEMOCAP"
CITATION = """C. Busso, M. Bulut, C.-C. Lee, A. Kazemzadeh, E. Mower, S. Kim, J. N. Chang, S. Lee and S. S. Narayanan,
IEMOCAP: Interactive emotional dyadic motion capture database, Language Resources and Evaluation 42(4), 2008, pages
335-359. https://doi.org/10.1007/s10579-008-9076-6"""
LICENSE = "LicenseRef-IEMOCAP"
TERMS = "For research, after signing the release form of the University of Southern California; do not pass it on."
SOURCE = "https://sail.usc.edu/iemocap/: fill in the release form, then unpack IEMOCAP_full_release."
ATTRIBUTION = ""
CLASSES = ("neutral", "angry", "sad", "happy")
MODALITIES = {"audio": "audio", "visual": "video", "text": "text"}
SAMPLES = 5531  # utterances of the four emotions
TREE = """Session1/sentences/wav/DIALOG/UTTERANCE.wav        Session1 to Session5
Session1/dialog/avi/DivX/DIALOG.avi
Session1/dialog/transcriptions/DIALOG.txt        UTTERANCE [start-end]: text
Session1/dialog/EmoEvaluation/DIALOG.txt         [start - end]<TAB>UTTERANCE<TAB>neu<TAB>[v, a, d]"""
PROTOCOLS = {
    "session": "session k of 5 is test, the next one val: nobody is heard or seen on two sides",
    "random": "60/20/20 by utterance, as released: all dialogues and speakers are on both sides",
    "file": "published lists, with --split-file",
}
EMOTIONS = {"neu": "neutral", "ang": "angry", "sad": "sad", "hap": "happy", "exc": "happy"}
NOT_USED = {"fru", "sur", "fea", "dis", "oth", "xxx"}  # xxx: the annotators did not agree
LABEL_LINE = re.compile(r"\[\s*([\d.]+)\s*-\s*([\d.]+)\s*\]\s+(\S+)\s+(\S+)(\s|$)")
TEXT_LINE = re.compile(r"(Ses\S+)\s+\[[\d.\s]+-[\d.\s]+\]\s*:(.*)")
UTTERANCE = re.compile(r"(Ses\d\d)([FM])_.+_([FM])\w+")


def scan(root: Path) -> Manifest:
    """One row per utterance of one of the four emotions; its start and end are in seconds of the dialogue."""
    found = _common.start(root, MODALITIES)
    base = _common.base_with(root, *(f"Session{k}" for k in range(1, 6)))
    if base is None:
        raise _common.not_this(root, TITLE, TREE)
    left_out = Counter[str]()
    for k in range(1, 6):
        session = _common.child(base, f"Session{k}")
        if session is None:
            found.notes.append(f"Session{k} is not there; `--protocol session` rotates over the others")
            continue
        _scan_session(found, session, left_out)
    if left_out:
        named = ", ".join(f"{number} {code}" for code, number in sorted(left_out.items()))
        found.notes.append(f"{left_out.total()} utterances of other emotions are left out: {named}")
    folder = "" if base == root else f"{_common.braced(base.name)}/"
    return found.manifest(
        CLASSES,
        {
            "audio": folder + "{session}/sentences/wav/{group}/{id}.wav",
            "visual": folder + "{session}/dialog/avi/DivX/{group}.avi",
            "text": folder + "{session}/dialog/transcriptions/{group}.txt",
        },
    )


def _scan_session(found: _common.Scan, session: Path, left_out: Counter[str]) -> None:
    labels = _common.child(session, "dialog", "EmoEvaluation")
    if labels is None:
        found.problem("missing", "", "", session / "dialog" / "EmoEvaluation", "no labels for this session")
        return
    texts = _texts(found, _common.child(session, "dialog", "transcriptions"))
    videos = _by_id(_common.media_files(found, _common.child(session, "dialog", "avi"), VIDEO_SUFFIXES))
    sounds = _by_id(_common.media_files(found, _common.child(session, "sentences", "wav"), AUDIO_SUFFIXES))
    # Subfolders hold each annotator's own labels; the merged ones lie in the folder itself.
    for path in (p for p in _common.media_files(found, labels, {".txt"}) if p.parent == labels):
        for where, start, end, name, code in _utterances(found, path):
            if code in NOT_USED:
                left_out[code] += 1
                continue
            known = UTTERANCE.fullmatch(name)
            if code not in EMOTIONS:
                found.problem("unknown_label", name, "", where, f"`{code}` is no emotion of IEMOCAP")
            elif known is None:
                found.problem("bad_row", name, "", where, f"`{name}` does not say who speaks")
            elif name in found.rows:
                found.problem("duplicate_id", name, "", where, "a second label; the first one stays")
            else:
                number, marked, speaker = known.groups()
                dialogue = _common.id_of(path)
                found.add(name, EMOTIONS[code], dialogue, session=session.name, speaker=number + speaker)
                side = 0 if speaker == marked else 50
                row = found.rows[name]
                if name in sounds:
                    found.put(name, "audio", sounds[name])
                if dialogue in videos:
                    found.put(name, "visual", videos[dialogue], f"#t={start},{end}&xywh=percent:{side},0,50,100")
                row["ref.text"] = texts.get(name)


def _by_id(paths: list[Path]) -> dict[str, Path]:
    # Reversed: of equal names the first one in sorted order stays.
    return {_common.id_of(path): path for path in reversed(paths)}


def _utterances(found: _common.Scan, path: Path) -> list[tuple[str, str, str, str, str]]:
    """(where, start, end, utterance, emotion code) of every label line; a broken one is a problem."""
    rows, file = [], relative_ref(found.root, path)
    for number, line in _common.read_lines(path):
        if not line.startswith("["):
            continue  # header, or what one annotator said
        where, match = f"{file}, line {number}", LABEL_LINE.match(line)
        try:
            start, end = (float(match[1]), float(match[2])) if match else (0.0, 0.0)
        except ValueError:
            start, end = 0.0, 0.0
        if match is None or not start < end:
            reason = f"expected [start - end]<TAB>UTTERANCE<TAB>emotion, got `{line.strip()[:80]}`"
            found.problem("bad_row", match[3] if match else "", "", where, reason)
            continue
        rows.append((where, str(round(start, 4)), str(round(end, 4)), match[3], match[4].lower()))
    return rows


def _texts(found: _common.Scan, folder: Path | None) -> dict[str, str]:
    """Utterance -> what is said, of one session."""
    texts = dict[str, str]()
    for path in _common.media_files(found, folder, {".txt"}, "text"):
        for number, line in _common.read_lines(path):
            if not line.startswith("Ses"):
                continue  # remarks of the transcribers
            where, match = f"{relative_ref(found.root, path)}, line {number}", TEXT_LINE.match(line)
            if match is None:
                found.problem("bad_row", "", "text", where, f"expected UTTERANCE [start-end]: text, got `{line[:80]}`")
            elif not match[2].strip():
                found.problem("empty", match[1], "text", where, "nothing is said")
            elif not _common.is_text(match[2]):
                found.problem("text_undecodable", match[1], "text", where, "not UTF-8")
            else:
                texts.setdefault(match[1], match[2].strip())
    return texts


def split(rows: pd.DataFrame, protocol: str, seed: int, fold: int) -> np.ndarray:
    """The split of every row; see PROTOCOLS."""
    if protocol == "session":
        return splits.leave_one_group_out([name[:5] for name in rows["id"]], fold)
    splits.check_fold(fold, 1)
    if protocol != "random":
        raise splits.unknown_protocol(protocol, PROTOCOLS)
    return splits.stratified(rows, (0.6, 0.2, 0.2), seed)
