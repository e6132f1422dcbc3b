"""UPMC Food-101: about 90,000 web pictures of 101 dishes (visual) with the title of the page they came from (text).

Pictures of any size; one sentence of text each, often with the dish's name in it. The published split names train and
test only; `official` keeps its test set and carves 5,000 validation samples out of train, stratified by class (of a
smaller copy the same share). There are no groups and no folds.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from mla_cli.data import splits
from mla_cli.data.kinds import IMAGE_SUFFIXES
from mla_cli.data.manifest import Manifest
from mla_cli.datasets import _common

TITLE = "UPMC Food-101"
CITATION = """X. Wang, D. Kumar, N. Thome, M. Cord and F. Precioso, Recipe recognition with large multimodal food
dataset, IEEE International Conference on Multimedia and Expo Workshops (ICMEW), 2015."""
LICENSE = "LicenseRef-UPMC-Food-101"
TERMS = "Pictures and titles of web pages, collected for research; rights stay with the pages' owners."
SOURCE = """http://visiir.lip6.fr (the authors' site); mirrors exist under the name "UPMC Food-101". Needed are the
pictures (images/train, images/test) and the two title files (texts)."""
ATTRIBUTION = ""
CLASSES = tuple(
    """apple_pie baby_back_ribs baklava beef_carpaccio beef_tartare beet_salad beignets bibimbap bread_pudding
    breakfast_burrito bruschetta caesar_salad cannoli caprese_salad carrot_cake ceviche cheese_plate cheesecake
    chicken_curry chicken_quesadilla chicken_wings chocolate_cake chocolate_mousse churros clam_chowder club_sandwich
    crab_cakes creme_brulee croque_madame cup_cakes deviled_eggs donuts dumplings edamame eggs_benedict escargots
    falafel filet_mignon fish_and_chips foie_gras french_fries french_onion_soup french_toast fried_calamari fried_rice
    frozen_yogurt garlic_bread gnocchi greek_salad grilled_cheese_sandwich grilled_salmon guacamole gyoza hamburger
    hot_and_sour_soup hot_dog huevos_rancheros hummus ice_cream lasagna lobster_bisque lobster_roll_sandwich
    macaroni_and_cheese macarons miso_soup mussels nachos omelette onion_rings oysters pad_thai paella pancakes
    panna_cotta peking_duck pho pizza pork_chop poutine prime_rib pulled_pork_sandwich ramen ravioli red_velvet_cake
    risotto samosa sashimi scallops seaweed_salad shrimp_and_grits spaghetti_bolognese spaghetti_carbonara spring_rolls
    steak strawberry_shortcake sushi tacos takoyaki tiramisu tuna_tartare waffles""".split()  # noqa: SIM905
)
MODALITIES = {"visual": "image", "text": "text"}
SAMPLES = 90_000  # about
TREE = """images/train/CLASS/CLASS_N.jpg      images/test/CLASS/CLASS_N.jpg
texts/train_titles.csv               rows `CLASS_N.jpg,TITLE,CLASS`
texts/test_titles.csv"""
PROTOCOLS = {
    "official": "the published test set; 5,000 validation samples carved out of train, stratified",
    "file": "published lists, with --split-file",
}
NUM_VAL, NUM_TRAIN = 5000, 67_972  # carved samples, and published training samples they are carved from


def scan(root: Path) -> Manifest:
    """One row per picture or title; a title is matched by the picture's name within train or test."""
    found = _common.start(root, MODALITIES)
    base = _common.base_with(root, "images")
    images = _common.child(base, "images") if base else None
    if base is None or images is None or not any(_common.child(images, split) for split in ("train", "test")):
        raise _common.not_this(root, TITLE, TREE)
    for split in ("train", "test"):
        for path in _common.media_files(found, _common.child(images, split), IMAGE_SUFFIXES, "visual"):
            name, label = _common.id_of(path), path.parent.name.lower().replace(" ", "_")
            if label not in CLASSES:
                found.problem("unknown_label", name, "visual", path, f"`{path.parent.name}` is none of the 101 classes")
                continue
            found.add(name, label, "", split)
            found.put(name, "visual", path)
        titles = _common.child(base, "texts", f"{split}_titles.csv")
        if titles is None:
            found.problem("missing", "", "text", f"texts/{split}_titles.csv", "no titles for this split")
        else:
            _read_titles(found, titles, split)
    return found.manifest(
        CLASSES, {"visual": "images/{split}/{label}/{id}.jpg", "text": "texts/{split}_titles.csv ({id}.jpg)"}
    )


def _read_titles(found: _common.Scan, path: Path, split: str) -> None:
    for number, line in _common.read_lines(path):
        where = f"{path.relative_to(found.root).as_posix()}, line {number}"
        fields = _common.csv_cells(line)
        if number == 1 and fields and Path(fields[0]).suffix.lower() not in IMAGE_SUFFIXES:
            continue  # a header
        if len(fields) < 3:
            found.problem("bad_row", "", "text", where, f"expected `CLASS_N.jpg,TITLE,CLASS`, got `{line[:80]}`")
            continue
        # Titles with commas are not always quoted; the class has none.
        name, title, label = _common.id_of(Path(fields[0])), ",".join(fields[1:-1]), fields[-1]
        label = label.lower().replace(" ", "_")
        if label not in CLASSES:
            found.problem("unknown_label", name, "text", where, f"`{fields[-1]}` is none of the 101 classes")
            continue
        found.add(name, label, "", split)
        row = found.rows[name]
        if row["label"] != label or row["split"] != split:
            reason = f"a title of `{split}/{label}` for a picture of `{row['split']}/{row['label']}`"
            found.problem("bad_row", name, "text", where, reason)
        elif row["ref.text"] is not None:
            found.problem("duplicate_id", name, "text", where, "a second title; the first one stays")
        elif not title:
            found.problem("empty", name, "text", where, "the title is empty")
        elif not _common.is_text(title):
            found.problem("text_undecodable", name, "text", where, "the title is not UTF-8")
        else:
            row["ref.text"] = title


def split(rows: pd.DataFrame, protocol: str, seed: int, fold: int) -> np.ndarray:
    """The split of every row; see PROTOCOLS."""
    splits.check_fold(fold, 1)
    if protocol != "official":
        raise splits.unknown_protocol(protocol, PROTOCOLS)
    split = splits.official(rows)
    whole = (split == "train").sum() > NUM_TRAIN / 2
    return splits.carve_val(split, rows, NUM_VAL if whole else NUM_VAL / NUM_TRAIN, seed)
