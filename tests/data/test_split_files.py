"""Published lists: three formats, one meaning, and every misfit between list and disk is counted."""

import json

import numpy as np
import pandas as pd
import pytest

from mla_cli.data.split_files import apply_split_file, read_split_file
from mla_cli.data.split_lines import SIGN
from mla_cli.errors import MlaError

LISTED = [("clip_1", "Sad"), ("clip_2", "neutral"), ("clip_3", "Sad")]
FORMATS = {
    "csv": lambda name, label: f"{name},{label}",
    "txt": lambda name, label: f"{name}.mp4 {label}",
    "sign.txt": lambda name, label: f"{name}.mp4 {SIGN} well, I said: {label} {SIGN} {label}",
    "jsonl": lambda name, label: json.dumps({"id": 7, "img": f"data/{name}.JPG", "text": "x", "label": label}),
}


def write_list(path, form="csv", listed=LISTED, ending="\n"):
    path.write_bytes((ending.join(FORMATS[form](*pair) for pair in listed) + ending).encode())
    return path


def make_rows(count=12):
    labels = ["sad" if i % 2 else "neutral" for i in range(count)]
    return pd.DataFrame({"id": [f"clip_{i}" for i in range(count)], "label": labels, "group": "", "split": ""})


def entries(lists):
    return [(entry.stem, entry.split, entry.label) for entry in lists.entries]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\n\n"])
def test_every_format_says_the_same(tmp_path, form, ending):
    path = write_list(tmp_path / f"my_train.{form}", form, ending=ending)
    assert entries(read_split_file(path)) == [(name, "train", label) for name, label in LISTED]


def test_the_content_decides_about_the_format_not_the_suffix(tmp_path):
    path = write_list(tmp_path / "train.csv", "jsonl")
    assert read_split_file(path).formats == {str(path): "jsonl"}


@pytest.mark.parametrize(
    ("name", "split"), [("train.csv", "train"), ("dev.jsonl", "val"), ("my_VAL.txt", "val"), ("Test_list.txt", "test")]
)
def test_the_name_says_the_split(tmp_path, name, split):
    assert {e.split for e in read_split_file(write_list(tmp_path / name)).entries} == {split}


@pytest.mark.parametrize("name", ["list.csv", "train_test.csv"])
def test_a_name_that_says_no_split_is_an_error(tmp_path, name):
    with pytest.raises(MlaError, match="does not say which split"):
        read_split_file(write_list(tmp_path / name))


def test_a_third_field_or_key_says_the_split_too(tmp_path):
    (tmp_path / "all.csv").write_text("\ufeffid,label,split\na,Sad,train\nb,Sad,DEV\nc,Sad,test\n", encoding="utf-8")
    assert entries(read_split_file(tmp_path / "all.csv")) == [
        ("a", "train", "Sad"),
        ("b", "val", "Sad"),
        ("c", "test", "Sad"),
    ]
    (tmp_path / "all.jsonl").write_text('{"id": "a", "label": 1, "split": "test"}\n')
    assert entries(read_split_file(tmp_path / "all.jsonl")) == [("a", "test", "1")]


def test_a_folder_and_a_comma_list_hold_several_lists(tmp_path):
    write_list(tmp_path / "train.csv", listed=LISTED[:1])
    write_list(tmp_path / "test.csv", listed=LISTED[1:])
    write_list(tmp_path / "stat.csv", listed=[("classes", "only")])
    folder = read_split_file(tmp_path)
    assert {(e.stem, e.split) for e in folder.entries} == {("clip_1", "train"), ("clip_2", "test"), ("clip_3", "test")}
    assert "stat.csv" in folder.notes[0]
    commas = read_split_file(f"{tmp_path / 'train.csv'}, {tmp_path / 'test.csv'}")
    assert sorted(entries(commas)) == sorted(entries(folder))


def test_two_lists_of_one_split_are_an_error(tmp_path):
    write_list(tmp_path / "train.csv")
    write_list(tmp_path / "my_train.txt", "txt")
    with pytest.raises(MlaError, match="are both lists of `train`"):
        read_split_file(tmp_path)


@pytest.mark.parametrize("where", ["nowhere.csv", "", "empty folder"])
def test_a_list_that_is_not_there_is_an_error(tmp_path, where):
    (tmp_path / "empty folder").mkdir()
    with pytest.raises(MlaError):
        read_split_file(tmp_path / where if where else "")


@pytest.mark.parametrize(
    ("name", "lines", "number", "value"),
    [
        ("train.csv", ["a,Sad", "b Sad", "c,Sad"], 2, "b Sad"),
        ("train.csv", ["a,Sad", "b,Sad,sometimes"], 2, "b,Sad,sometimes"),
        ("train.txt", ["a.jpg Sad", "", "lonely"], 3, "lonely"),
        ("train.txt", [f"a.mp4 {SIGN} x {SIGN} Sad", f"a.mp4 {SIGN} x {SIGN} y {SIGN} Sad"], 2, "a.mp4"),
        ("train.jsonl", ['{"img": "a.jpg"}', '{"img": "b.jpg"'], 2, '{"img": "b.jpg"'),
        ("train.jsonl", ['{"img": "a.jpg"}', "[1, 2]"], 2, "[1, 2]"),
        ("train.jsonl", ['{"label": "Sad"}'], 1, '{"label": "Sad"}'),
    ],
)
def test_a_bad_line_is_named_by_file_number_and_value(tmp_path, name, lines, number, value):
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    with pytest.raises(MlaError) as error:
        read_split_file(tmp_path / name)
    assert f"{tmp_path / name}, line {number}: " in error.value.message
    assert value in error.value.message


def test_more_bad_lines_are_counted_in_the_same_error(tmp_path):
    (tmp_path / "train.csv").write_text("a,Sad\nb\nc\nd\n")
    with pytest.raises(MlaError, match=r"line 2: .*`b` \(and 2 more bad lines\)"):
        read_split_file(tmp_path / "train.csv")


def test_a_list_that_is_not_utf8_is_named_by_line(tmp_path):
    (tmp_path / "train.csv").write_bytes(b"a,Sad\ncaf\xe9,Sad\n")
    with pytest.raises(MlaError, match=r"line 2: not UTF-8: `caf\\xe9,Sad`"):
        read_split_file(tmp_path / "train.csv")


def test_an_empty_list_is_an_error(tmp_path):
    (tmp_path / "train.csv").write_text("\n \n")
    with pytest.raises(MlaError, match="is empty"):
        read_split_file(tmp_path / "train.csv")


# ---------------------------------------------------------------- lists and data together


def test_lists_decide_and_misfits_are_counted(tmp_path):
    write_list(tmp_path / "train.csv", listed=[("clip_1.mp4", "Sad"), ("clip_2", "Sad"), ("gone", "Sad")])
    write_list(tmp_path / "val.csv", listed=[("clip_3", "Sad"), ("clip_5", "Sad")])
    write_list(tmp_path / "test.csv", listed=[("clip_4", "neutral"), ("clip_5", "Sad")])
    rows = make_rows(7)
    split, report = apply_split_file(rows, read_split_file(tmp_path), seed=0)
    assert list(split) == ["", "train", "train", "val", "test", "test", ""]
    assert report.listed == {"train": 3, "val": 2, "test": 2}
    assert report.not_on_disk == ["gone"]
    assert report.not_listed == ["clip_0", "clip_6"]
    assert report.on_two_lists == ["clip_5"]
    assert report.other_label == ["clip_2"]  # neutral on disk
    told = "\n".join(report.lines())
    for fact in ("3 train, 2 val, 2 test", "1 samples on a list but not on disk; first: gone", "2 samples on disk"):
        assert fact in told


def test_val_is_carved_out_where_there_is_no_list_of_it(tmp_path):
    rows = make_rows(60)
    write_list(tmp_path / "train.csv", listed=[(f"clip_{i}", "") for i in range(50)])
    write_list(tmp_path / "test.csv", listed=[(f"clip_{i}", "") for i in range(50, 60)])
    lists = read_split_file(tmp_path)
    split, report = apply_split_file(rows, lists, seed=0, val_share=0.2)
    assert (split == "val").sum() == 10
    assert set(np.flatnonzero(split == "test")) == set(range(50, 60))
    assert "10 training samples carved out, seed 0" in report.notes[-1]
    other, _ = apply_split_file(rows, lists, seed=1, val_share=0.2)
    assert (other != split).any()
    order = np.random.default_rng(0).permutation(60)
    np.testing.assert_array_equal(apply_split_file(rows.iloc[order], lists, 0, 0.2)[0], split[order])


def test_lists_of_two_families_are_a_warning(tmp_path):
    write_list(tmp_path / "train.jsonl", "jsonl")
    assert read_split_file(tmp_path).notes == []
    write_list(tmp_path / "test.txt", "txt")
    (note,) = read_split_file(tmp_path).notes
    assert "MMBT/QMF style and MLA style" in note


def test_a_stem_that_means_two_samples_is_not_guessed(tmp_path):
    rows = pd.DataFrame({"id": ["a/1.jpg", "b/1.jpg", "2"], "label": "x", "group": "", "split": ""})
    write_list(tmp_path / "train.csv", listed=[("1.jpg", "x"), ("2", "x")])
    write_list(tmp_path / "val.csv", listed=[("3", "x")])
    split, report = apply_split_file(rows, read_split_file(tmp_path), seed=0)
    assert list(split) == ["", "", "train"]
    assert report.not_on_disk == ["1", "3"]
    assert "stand for several samples" in report.notes[-1]


def test_lists_of_other_data_are_an_error(tmp_path):
    write_list(tmp_path / "train.csv", listed=[("other", "x")])
    with pytest.raises(MlaError, match="none of the 1 listed samples") as error:
        apply_split_file(make_rows(), read_split_file(tmp_path), seed=0)
    assert "clip_0" in error.value.hint
