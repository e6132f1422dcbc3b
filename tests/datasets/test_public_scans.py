"""Scans of small raw trees: what is found, and that nothing is skipped without a word."""

import errno
import os
import shutil

import pytest
import raw_trees
from raw_trees import make_cremad, make_food101, make_iemocap, make_kinetics, make_mvsa

from mla_cli.data.manifest import Manifest
from mla_cli.data.media import parse_ref
from mla_cli.datasets import cremad, food101, iemocap, kinetics_sounds, mvsa
from mla_cli.errors import MlaError

ONE = {"actors": 1}


def problems(manifest: Manifest) -> set[tuple[str, str, str]]:
    """(kind, id, modality) of every problem."""
    return {(p.kind, p.id, p.modality) for p in manifest.problems}


def whole(manifest: Manifest) -> int:
    """How many rows have every modality."""
    return int(manifest.rows[[f"ref.{m}" for m in manifest.modalities]].notna().all(axis=1).sum())


def test_the_media_of_the_trees_are_real(tmp_path):
    import av

    for suffix in raw_trees.CODECS:
        raw_trees.write_video(tmp_path / f"clip{suffix}", 1)
        with av.open(str(tmp_path / f"clip{suffix}")) as container:
            assert len(list(container.decode(video=0))) == 5
        with av.open(str(tmp_path / f"clip{suffix}")) as container:
            seconds = sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))
        assert seconds == pytest.approx(0.5, abs=0.15)
    raw_trees.truncate(tmp_path / "clip.mp4")
    with pytest.raises(av.FFmpegError):
        av.open(str(tmp_path / "clip.mp4"))


# ---------------------------------------------------------------- CREMA-D


def test_cremad_rows_hold_actor_emotion_and_both_files(tmp_path):
    make_cremad(tmp_path, actors=2)
    manifest = cremad.scan(tmp_path)
    row = manifest.rows.set_index("id").loc["1002_DFA_FEA_XX"]
    assert (row["label"], row["group"]) == ("FEA", "1002")
    assert row["ref.audio"] == "AudioWAV/1002_DFA_FEA_XX.wav"
    assert row["ref.visual"] == "VideoFlash/1002_DFA_FEA_XX.flv"
    assert manifest.classes == cremad.CLASSES
    assert "12 clips found; the published set has 7442" in manifest.notes


def test_cremad_lists_everything_that_is_wrong(tmp_path):
    number = make_cremad(tmp_path, **ONE, missing=True, unknown_label=True, bad_name=True, duplicate=True)
    manifest = cremad.scan(tmp_path)
    assert problems(manifest) == {
        ("missing", "1001_MTI_ANG_LO", "visual"),
        ("unknown_label", "1001_MTI_ODD_XX", "audio"),
        ("unknown_label", "1001_MTI_ODD_XX", "visual"),
        ("bad_row", "notes", "audio"),
        ("duplicate_id", "1001_DFA_ANG_XX", "audio"),
    }
    missing = next(p for p in manifest.problems if p.kind == "missing")
    assert missing.file == "VideoFlash/1001_MTI_ANG_LO.flv"
    row = manifest.rows.set_index("id").loc["1001_MTI_ANG_LO"]
    assert row["ref.visual"] is None
    assert row["ref.audio"] == "AudioWAV/1001_MTI_ANG_LO.wav"
    assert (whole(manifest), len(manifest.rows)) == (number, number + 1)
    assert manifest.rows.set_index("id").loc["1001_DFA_ANG_XX", "ref.audio"] == "AudioWAV/1001_DFA_ANG_XX.wav"


def test_cremad_reads_upper_case_suffixes_spaces_and_accents(tmp_path):
    root = tmp_path / "meine Daten \u00e4\u00f6\u00fc #1"
    number = make_cremad(root, **ONE, upper_case=True, odd_names=True)
    manifest = cremad.scan(root)
    assert manifest.problems == []
    assert whole(manifest) == number
    ref = manifest.rows.set_index("id").loc["1001_MTI_SAD_HI", "ref.visual"]
    assert ref == "VideoFlash/d\u00e9p\u00f4t 1/1001_MTI_SAD_HI.FLV"
    assert (root / ref).is_file()


def test_cremad_notes_the_silent_clip(tmp_path):
    make_cremad(tmp_path, **ONE, silent=True)
    assert any("1076_MTI_SAD_XX.wav` is silent" in note for note in cremad.scan(tmp_path).notes)


def test_cremad_without_videos_misses_all_of_them(tmp_path):
    number = make_cremad(tmp_path, **ONE)
    shutil.rmtree(tmp_path / "VideoFlash")
    manifest = cremad.scan(tmp_path)
    assert [p.kind for p in manifest.problems] == ["missing"] * number
    assert manifest.rows["ref.visual"].isna().all()


def test_a_folder_linked_into_itself_does_not_hang_and_hidden_files_are_no_clips(tmp_path):
    number = make_cremad(tmp_path, **ONE)
    (tmp_path / "AudioWAV" / "loop").symlink_to(tmp_path / "AudioWAV", target_is_directory=True)
    (tmp_path / "AudioWAV" / "._1001_DFA_ANG_XX.wav").write_bytes(b"\x00\x05\x16\x07")
    manifest = cremad.scan(tmp_path)
    assert manifest.problems == []
    assert len(manifest.rows) == number


def test_a_folder_that_cannot_be_read_is_listed(tmp_path, monkeypatch):
    """Simulated: nothing is denied to root, as whom tests may run."""
    number = make_cremad(tmp_path, **ONE)
    shut, real = tmp_path / "AudioWAV" / "more", os.scandir
    shut.mkdir()

    def scandir(path):
        if path == str(shut):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    manifest = cremad.scan(tmp_path)
    (problem,) = manifest.problems
    assert (problem.kind, problem.modality, problem.file) == ("undecodable", "audio", "AudioWAV/more")
    assert problem.reason == "the folder cannot be read: Permission denied"
    assert len(manifest.rows) == number


def test_a_file_name_that_is_not_utf8_is_listed(tmp_path):
    make_cremad(tmp_path, **ONE)
    name = os.fsencode(tmp_path / "AudioWAV") + b"/1001_caf\xe9_ANG_XX.wav"
    try:
        with open(name, "wb") as file:
            file.write(b"x")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (problem,) = cremad.scan(tmp_path).problems
    assert (problem.kind, problem.file) == ("undecodable", "AudioWAV/1001_caf\\udce9_ANG_XX.wav")


def test_a_name_in_either_unicode_form_is_one_clip(tmp_path):
    raw_trees.write_wav(tmp_path / "AudioWAV" / "Ren\u00e9_DFA_ANG_XX.wav", 1)
    raw_trees.write_wav(tmp_path / "VideoFlash" / "Rene\u0301_DFA_ANG_XX.flv", 1)
    (row,) = cremad.scan(tmp_path).rows.to_dict("records")
    assert row["ref.audio"]
    assert row["ref.visual"]


# ---------------------------------------------------------------- Kinetics-Sounds


def test_kinetics_folders_name_split_and_class(tmp_path):
    number = make_kinetics(tmp_path, upper_case=True, underscores=True)
    manifest = kinetics_sounds.scan(tmp_path)
    assert manifest.problems == []
    assert whole(manifest) == number
    assert manifest.classes == ("blowing nose", "playing guitar", "tap dancing")
    row = manifest.rows.set_index("id").loc["v0001-_0002_000012_000022"]
    assert (row["label"], row["split"], row["group"]) == ("playing guitar", "val", "v0001-_0002")
    assert row["ref.audio"] == row["ref.visual"] == "val/playing_guitar/v0001-_0002_000012_000022.mp4"


def test_kinetics_official_tests_on_kinetics_val_and_carves_val_from_train(tmp_path):
    make_kinetics(tmp_path)
    rows = kinetics_sounds.scan(tmp_path).rows
    split = kinetics_sounds.split(rows, "official", 0, 0)
    assert set(rows["split"][split == "test"]) == {"val"}
    assert set(rows["split"][split == "val"]) == {"train"}
    assert (split == "test").sum() == 12


def test_kinetics_annotations_cut_whole_videos(tmp_path):
    number = make_kinetics(tmp_path, whole=True)
    manifest = kinetics_sounds.scan(tmp_path)
    assert manifest.problems == []
    assert whole(manifest) == number
    row = manifest.rows.set_index("id").loc["t0000-_0001_000000_000001"]
    assert row["ref.visual"] == "videos/t0000-_0001.mp4#t=0.5,1.5"
    assert (row["label"], row["split"]) == ("blowing nose", "train")
    assert (parse_ref(row["ref.visual"]).start, parse_ref(row["ref.visual"]).end) == (0.5, 1.5)


def test_kinetics_lists_missing_clips_and_bad_lines_of_the_annotation(tmp_path):
    number = make_kinetics(
        tmp_path, annotations=True, missing=True, bad_annotation=True, other_class=True, duplicate=True, no_class=True
    )
    manifest = kinetics_sounds.scan(tmp_path)
    assert problems(manifest) == {
        ("missing", "gone0000000_000003_000013", ""),
        ("bad_row", "badtimes000", ""),
        ("duplicate_id", "t0000-_0000_000012_000022", ""),
        ("unknown_label", "lonely00000_000001_000011", ""),
    }
    assert "annotations/all clips.csv, line 28" in {p.file for p in manifest.problems}
    assert len(manifest.rows) == whole(manifest) == number
    assert any("`zumba`" in note for note in manifest.notes)


def test_kinetics_annotations_decide_over_folders(tmp_path):
    make_kinetics(tmp_path, annotations=True)
    (tmp_path / "val").rename(tmp_path / "unsorted")
    for folder in (tmp_path / "unsorted").iterdir():
        folder.rename(folder.with_name("xyz " + folder.name))
    manifest = kinetics_sounds.scan(tmp_path)
    assert len(manifest.rows) == 24
    assert set(manifest.rows["split"]) == {"train", "val"}


def test_kinetics_class_lists_can_be_chosen(tmp_path):
    make_kinetics(tmp_path, classes=("tickling", "strumming guitar"), clips=1)
    assert kinetics_sounds.scan(tmp_path).classes == ("tickling",)
    assert kinetics_sounds.scan(tmp_path, classes="ks32").classes == ("tickling", "strumming guitar")
    assert kinetics_sounds.scan(tmp_path, classes=["Strumming_Guitar"]).classes == ("strumming guitar",)
    with pytest.raises(MlaError, match="no class list `ks33`"):
        kinetics_sounds.scan(tmp_path, classes="ks33")
    with pytest.raises(MlaError, match="none of the 4 videos"):
        kinetics_sounds.scan(tmp_path, classes=["bowling"])
    assert len(kinetics_sounds.CLASS_LISTS["ks32"]) == 32


# ---------------------------------------------------------------- UPMC Food-101


def test_food101_joins_pictures_and_titles(tmp_path):
    number = make_food101(tmp_path, comma_title=True, upper_case=True, empty=True)
    manifest = food101.scan(tmp_path)
    assert manifest.problems == []
    assert whole(manifest) == len(manifest.rows) == number
    rows = manifest.rows.set_index("id")
    assert rows.loc["pizza_2", "ref.text"] == "My best pizza, number 2 \u2014 caf\u00e9"
    assert rows.loc["apple_pie_904", "ref.text"] == "one,two,three"
    assert rows.loc["apple_pie_907", "ref.visual"] == "images/train/apple_pie/apple_pie_907.JPG"
    assert rows.loc["pizza_101", "split"] == "test"
    assert any("98 of 101 classes have no sample" in note for note in manifest.notes)


def test_food101_lists_everything_that_is_wrong(tmp_path):
    make_food101(
        tmp_path,
        missing_picture=True,
        missing_title=True,
        unknown_label=True,
        bad_row=True,
        latin_title=True,
        duplicate=True,
    )
    manifest = food101.scan(tmp_path)
    assert problems(manifest) == {
        ("missing", "apple_pie_900", "visual"),
        ("missing", "apple_pie_901", "text"),
        ("unknown_label", "stew_1", "visual"),
        ("unknown_label", "stew_1", "text"),
        ("bad_row", "", "text"),
        ("text_undecodable", "apple_pie_903", "text"),
        ("duplicate_id", "apple_pie_0", "text"),
    }
    rows = manifest.rows.set_index("id")
    assert rows.loc["apple_pie_900", "ref.visual"] is None
    assert rows.loc["apple_pie_903", "ref.text"] is None


def test_food101_title_of_another_class_or_split_is_listed(tmp_path):
    make_food101(tmp_path)
    with (tmp_path / "texts" / "test_titles.csv").open("a") as file:
        file.write("pizza_0.jpg,from train,pizza\n")
    (problem,) = food101.scan(tmp_path).problems
    assert (problem.kind, problem.id) == ("bad_row", "pizza_0")
    assert "train/pizza" in problem.reason


def test_food101_keeps_the_test_set_and_carves_val_by_class(tmp_path):
    make_food101(tmp_path, pictures=30)
    rows = food101.scan(tmp_path).rows
    split = food101.split(rows, "official", 0, 0)
    assert set(rows["split"][split == "test"]) == {"test"}
    assert (split == "test").sum() == 90
    assert rows["label"][split == "val"].value_counts().to_dict() == {"apple_pie": 3, "pizza": 2, "waffles": 2}


# ---------------------------------------------------------------- MVSA-Single


def test_mvsa_merges_the_two_labels_and_names_the_fallback_encoding(tmp_path):
    number = make_mvsa(tmp_path, latin=True, upper_case=True, contradiction=True, empty=True)
    manifest = mvsa.scan(tmp_path)
    assert manifest.problems == []
    assert whole(manifest) == len(manifest.rows) == number
    rows = manifest.rows.set_index("id")
    assert [rows.loc[i, "label"] for i in ("1", "2", "7", "13")] == ["positive", "positive", "neutral", "negative"]
    assert rows.loc["1", "ref.text"] == "data/1.txt#encoding=latin-1"
    assert parse_ref(rows.loc["1", "ref.text"]).encoding == "latin-1"
    assert any("1 tweets left out" in note for note in manifest.notes)


def test_mvsa_lists_everything_that_is_wrong(tmp_path):
    make_mvsa(tmp_path, missing=True, unlabelled=True, unknown_label=True, bad_row=True, duplicate=True)
    manifest = mvsa.scan(tmp_path)
    assert problems(manifest) == {
        ("missing", "19", "text"),
        ("unknown_label", "20", "visual"),
        ("unknown_label", "20", "text"),
        ("unknown_label", "21", ""),
        ("bad_row", "77777", ""),
        ("duplicate_id", "1", ""),
    }
    assert "labelResultAll.txt, line 23" in {p.file for p in manifest.problems}


def test_mvsa_multiple_is_refused(tmp_path):
    make_mvsa(tmp_path)
    with (tmp_path / "labelResultAll.txt").open("a") as file:
        file.write("99\tpositive,neutral\tpositive,neutral\tneutral,neutral\n")
    with pytest.raises(MlaError, match="labels of 3 annotators"):
        mvsa.scan(tmp_path)


# ---------------------------------------------------------------- IEMOCAP


def test_iemocap_rows_cut_the_dialogue_and_show_the_speaker(tmp_path):
    make_iemocap(tmp_path, sessions=2)
    rows = iemocap.scan(tmp_path).rows.set_index("id")
    row = rows.loc["Ses02M_impro01_F001"]
    assert (row["label"], row["group"]) == ("angry", "Ses02M_impro01")
    assert (row["session"], row["speaker"]) == ("Session2", "Ses02F")
    assert row["ref.text"] == "I said: ang, caf\u00e9."
    assert row["ref.audio"] == "Session2/sentences/wav/Ses02M_impro01/Ses02M_impro01_F001.wav"
    # The man wears the markers and sits on the left, so the woman is on the right.
    assert row["ref.visual"] == "Session2/dialog/avi/DivX/Ses02M_impro01.avi#t=0.8,1.2&xywh=percent:50,0,50,100"
    assert rows.loc["Ses02M_impro01_M001", "ref.visual"].endswith("#t=1.2,1.6&xywh=percent:0,0,50,100")
    assert rows.loc["Ses01F_impro01_F000", "ref.visual"].endswith("percent:0,0,50,100")
    assert parse_ref(row["ref.visual"]).box == (50, 0, 50, 100)
    assert rows["label"].value_counts().to_dict() == {"happy": 16, "neutral": 8, "angry": 8, "sad": 8}


def test_iemocap_lists_everything_that_is_wrong(tmp_path):
    number = make_iemocap(
        tmp_path,
        missing_sound=True,
        missing_text=True,
        latin_text=True,
        unknown_label=True,
        bad_row=True,
        duplicate=True,
        other_emotion=True,
        remarks=True,
        upper_case=True,
    )
    manifest = iemocap.scan(tmp_path)
    dialogue = "Ses05M_impro01"
    assert problems(manifest) == {
        ("missing", f"{dialogue}_F102", "audio"),
        ("missing", f"{dialogue}_F103", "text"),
        ("text_undecodable", f"{dialogue}_F104", "text"),
        ("unknown_label", f"{dialogue}_F101", ""),
        ("bad_row", f"{dialogue}_F105", ""),
        ("bad_row", "", "text"),
        ("duplicate_id", f"{dialogue}_F000", ""),
    }
    assert (whole(manifest), len(manifest.rows)) == (number, number + 3)
    assert any("1 utterances of other emotions are left out: 1 fru" in note for note in manifest.notes)
    assert manifest.rows.set_index("id").loc[f"{dialogue}_F000", "label"] == "neutral"


def test_iemocap_without_a_video_keeps_sound_and_text(tmp_path):
    number = make_iemocap(tmp_path, sessions=1, missing_video=True)
    manifest = iemocap.scan(tmp_path)
    assert (whole(manifest), len(manifest.rows)) == (number, number + 10)
    assert {(p.kind, p.modality, p.file) for p in manifest.problems} == {
        ("missing", "visual", "Session1/dialog/avi/DivX/Ses01M_impro01.avi")
    }
    assert sum("is not there" in note for note in manifest.notes) == 4


def test_iemocap_without_labels_of_a_session_says_so(tmp_path):
    make_iemocap(tmp_path, sessions=2)
    shutil.rmtree(tmp_path / "Session2" / "dialog" / "EmoEvaluation")
    manifest = iemocap.scan(tmp_path)
    assert [(p.kind, p.file) for p in manifest.problems] == [("missing", "Session2/dialog/EmoEvaluation")]
    assert len(manifest.rows) == 20
