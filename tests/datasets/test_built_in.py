"""The three built-in sets hold what the demo data's README says."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mla_cli import registry
from mla_cli.datasets import digits, emoji, mfeat

DEMO = Path(registry.__file__).parent / "demo"
EMOJI_COUNTS = {  # label -> train, val, test
    "activities": (51, 17, 17),
    "animals-nature": (95, 32, 32),
    "food-drink": (79, 26, 26),
    "objects": (158, 53, 53),
    "people-body": (232, 77, 77),
    "smileys-emotion": (101, 34, 34),
    "symbols": (134, 45, 45),
    "travel-places": (130, 44, 44),
}


def counts_of(rows: pd.DataFrame, split: np.ndarray) -> dict[str, tuple[int, ...]]:
    table = pd.crosstab(rows["label"].to_numpy(), split)
    return {str(label): tuple(row[["train", "val", "test"]]) for label, row in table.iterrows()}


def test_emoji_counts_are_those_of_the_readme():
    manifest = emoji.scan(DEMO / "emoji")
    rows = manifest.rows
    assert len(rows) == 1636
    assert list(manifest.modalities) == ["visual", "text"]
    assert rows["group"].nunique() == 1241
    assert counts_of(rows, emoji.split(rows, "shipped", 0, 0)) == EMOJI_COUNTS


def test_emoji_text_is_the_name_alone():
    row = emoji.scan(DEMO / "emoji").rows.set_index("id").loc["1F600"]
    assert row["ref.text"] == "grinning face"
    assert row["ref.visual"] == "visual.zip::visual/1F600.png"
    assert row["group"] == "smileys-emotion/grinning face"
    assert "cheerful" in row["keywords"]


def test_emoji_random_is_near_60_20_20_in_every_class():
    rows = emoji.scan(DEMO / "emoji").rows
    for label, (train, val, test) in counts_of(rows, emoji.split(rows, "random", 3, 0)).items():
        total = sum(EMOJI_COUNTS[label])
        assert train / total == pytest.approx(0.6, abs=0.03)
        assert val / total == pytest.approx(0.2, abs=0.03)
        assert test / total == pytest.approx(0.2, abs=0.03)


def test_a_drawing_that_is_not_in_the_archive_is_missing(tmp_path):
    (tmp_path / "metadata.csv").write_text(
        "id,visual,text,keywords,label,subgroup,split,family\n"
        "1F600,visual/1F600.png,a,b,objects,s,train,f\n"
        "ABCDE,visual/ABCDE.png,a,b,objects,s,train,f\n"
    )
    (tmp_path / "visual.zip").write_bytes((DEMO / "emoji" / "visual.zip").read_bytes())
    (problem,) = emoji.scan(tmp_path).problems
    assert (problem.kind, problem.id, problem.file) == ("missing", "ABCDE", "visual.zip::visual/ABCDE.png")


def test_digits_are_unpaired_and_their_ids_do_not_collide():
    manifest = digits.scan(DEMO / "digits")
    rows = manifest.rows
    audio, visual = rows["ref.audio"].notna(), rows["ref.visual"].notna()
    assert (audio.sum(), visual.sum(), (audio & visual).sum()) == (70, 3000, 0)
    assert list(manifest.modalities) == ["audio", "visual"]
    assert rows["id"].is_unique
    assert set(rows["group"][audio]) == {"allison", "armelle", "carlo", "ivrvoice", "june", "menardi"}
    assert set(rows["group"][visual]) == {""}
    split = digits.split(rows, "shipped", 0, 0)
    assert set(counts_of(rows[audio], split[audio]).values()) == {(5, 1, 1)}
    assert set(counts_of(rows[visual], split[visual]).values()) == {(200, 50, 50)}
    assert set(rows["voice"][audio & (split == "test")]) == {"menardi-it"}
    for ref in rows["ref.audio"][audio]:
        assert (DEMO / "digits" / ref).is_file()


def test_speaker_fold_rotates_over_six_people_and_draws_the_images_again():
    rows = digits.scan(DEMO / "digits").rows
    spoken = (rows["group"] != "").to_numpy()
    tested, images = [], []
    for fold in range(6):
        split = digits.split(rows, "speaker_fold", 0, fold)
        (person,) = set(rows["group"][spoken & (split == "test")])
        tested.append(person)
        images.append(frozenset(np.flatnonzero(~spoken & (split == "test"))))
        assert set(counts_of(rows[~spoken], split[~spoken]).values()) == {(200, 50, 50)}
    assert tested == ["allison", "armelle", "carlo", "ivrvoice", "june", "menardi"]
    assert len(set(images)) == 6


def test_mfeat_has_six_views_and_six_pairs_of_twins():
    manifest = mfeat.scan(DEMO / "mfeat")
    rows = manifest.rows
    assert len(rows) == 2000
    assert list(manifest.modalities) == ["mor", "fou", "zer", "kar", "fac", "pix"]
    assert rows.loc[17, "id"] == "0017"
    assert rows.loc[17, "ref.fac"] == "fac.npz::17"
    twins = rows[rows["group"] != ""].groupby("group")["id"].apply(tuple)
    assert set(twins) == {
        ("0605", "0774"),
        ("1148", "1172"),
        ("1237", "1271"),
        ("1265", "1272"),
        ("1448", "1521"),
        ("1892", "1999"),
    }
    for protocol in mfeat.PROTOCOLS:
        assert set(counts_of(rows, mfeat.split(rows, protocol, 0, 0)).values()) == {(100, 40, 60)}
