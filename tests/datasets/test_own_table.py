"""A table of one's own: kinds read off the cells, absences kept, nothing from outside, nothing dropped quietly."""

import os

import numpy as np
import pandas as pd
import pytest
from media_files import tone, write_audio, write_clip

from mla_cli.data import splits
from mla_cli.datasets import table
from mla_cli.errors import MlaError

HEADER = "id,label,sound,picture,clip,vector,note,words\n"
ROW = "{id},{label},s.wav,p.JPG,c.mp4,v.npy::{row},t.txt,hello {id}\n"


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "raw data \u00e9"
    folder.mkdir()
    for name in ("s.wav", "p.JPG", "c.mp4", "v.npy", "t.txt"):
        (folder / name).write_bytes(b"x")
    return folder


def write(root, text, name="my.csv", encoding="utf-8"):
    (root / name).write_bytes(text.encode(encoding))
    return root / name


def full_table(count=30):
    return HEADER + "".join(ROW.format(id=f"s{i:02d}", label="ab"[i % 2], row=i) for i in range(count))


def test_kinds_are_read_off_the_cells(root):
    manifest = table.scan(root, write(root, full_table()))
    assert manifest.modalities == {
        "sound": "audio",
        "picture": "image",
        "clip": "video",
        "vector": "vector",
        "note": "text_file",
        "words": "text",
    }
    assert manifest.problems == []
    assert manifest.classes == ("a", "b")
    row = manifest.rows.iloc[3]
    assert (row["id"], row["label"], row["ref.vector"], row["ref.words"]) == ("s03", "b", "v.npy::3", "hello s03")


def test_kinds_can_be_overridden_and_columns_ignored(root):
    path = write(root, full_table())
    manifest = table.scan(root, path, kinds={"clip": "audio", "note": "ignore"})
    assert manifest.modalities["clip"] == "audio"
    assert "note" not in manifest.modalities
    with pytest.raises(MlaError, match="no modality `clipp`") as error:
        table.scan(root, path, kinds={"clipp": "audio"})
    assert error.value.hint == "did you mean `clip`?"
    with pytest.raises(MlaError, match="no kind `sounds`"):
        table.scan(root, path, kinds={"clip": "sounds"})


@pytest.mark.parametrize(
    ("name", "delimiter"), [("my.csv", ","), ("my.csv", ";"), ("my.csv", "\t"), ("my.tsv", "\t"), ("MY.TSV", "\t")]
)
def test_delimiters_and_a_byte_order_mark(root, name, delimiter):
    lines = [["id", "label", "words"], ["1", "x", '"one, two; ""three"""'], ["2", "y", "=cmd()"]]
    text = "\ufeff" + "\n".join(delimiter.join(cells) for cells in lines) + "\n"
    rows = table.scan(root, write(root, text, name)).rows
    assert list(rows["ref.words"]) == ['one, two; "three"', "=cmd()"]


def test_parquet_reads_like_csv(root):
    frame = pd.DataFrame(
        {"id": [1, 2, 3], "label": [1, None, 0], "picture": ["p.JPG", None, "p.JPG"], "words": ["a", "b", None]}
    ).astype({"label": "Int64"})
    frame.to_parquet(root / "my.parquet")
    manifest = table.scan(root, root / "my.parquet")
    assert list(manifest.rows["id"]) == ["1", "3"]
    assert manifest.classes == ("0", "1")
    assert manifest.rows.set_index("id").loc["3", "ref.words"] is None
    (problem,) = manifest.problems
    assert (problem.kind, problem.id, problem.file) == ("unknown_label", "2", "my.parquet, row 2")


def test_parquet_with_lists_is_refused(root):
    pd.DataFrame({"id": ["1"], "label": ["x"], "vector": [[1.0, 2.0]]}).to_parquet(root / "my.parquet")
    with pytest.raises(MlaError, match=r"column `vector` of .* holds"):
        table.scan(root, root / "my.parquet")


def test_empty_cells_are_absent_modalities(root):
    manifest = table.scan(root, write(root, "id,label,picture,words,void\n1,x,p.JPG,,\n2,x, ,hi,\n"))
    rows = manifest.rows.set_index("id")
    assert rows.loc["1", "ref.words"] is None
    assert rows.loc["2", "ref.picture"] is None
    assert manifest.problems == []
    assert list(manifest.modalities) == ["picture", "words"]
    assert manifest.notes == ["column `void` is empty and left out"]


def test_words_like_na_and_null_are_text(root):
    manifest = table.scan(root, write(root, "id,label,words\nNA,null,None\n2,NA,nan\n"))
    assert list(manifest.rows["ref.words"]) == ["nan", "None"]
    assert manifest.classes == ("NA", "null")


def test_bad_rows_are_listed_with_their_line(root):
    text = 'id,label,words\n1,x,"two\nlines"\n,x,no id\n1,x,again\n2,,no label\n3,x,\n4,x\n5,x,one,more\n6,x,fine\n'
    manifest = table.scan(root, write(root, text))
    assert [(p.kind, p.id, p.file) for p in manifest.problems] == [
        ("bad_row", "", "my.csv, line 8"),
        ("bad_row", "", "my.csv, line 9"),
        ("bad_row", "", "my.csv, line 4"),
        ("duplicate_id", "1", "my.csv, line 5"),
        ("unknown_label", "2", "my.csv, line 6"),
        ("bad_row", "3", "my.csv, line 7"),
    ]
    assert list(manifest.rows["id"]) == ["1", "6"]
    assert manifest.rows.iloc[0]["ref.words"] == "two\nlines"


def test_a_file_that_is_not_there_is_missing_and_the_row_stays(root):
    manifest = table.scan(root, write(root, "id,label,picture,words\n1,x,gone.jpg,hi\n2,x,p.JPG,hi\n"))
    (problem,) = manifest.problems
    assert (problem.kind, problem.id, problem.modality, problem.file) == ("missing", "1", "picture", "gone.jpg")
    assert manifest.rows.set_index("id").loc["1", "ref.picture"] is None
    assert len(manifest.rows) == 2


def test_a_column_of_mostly_text_is_text_and_mostly_files_is_files(root):
    manifest = table.scan(root, write(root, "id,label,a,b\n1,x,see p.JPG,p.JPG\n2,x,hi,p.JPG\n3,x,ho,n/a\n"))
    assert manifest.modalities == {"a": "text", "b": "image"}
    assert [(p.kind, p.id, p.modality) for p in manifest.problems] == [("missing", "3", "b")]


def test_a_column_of_mixed_files_needs_a_word(root):
    path = write(root, "id,label,a\n1,x,s.wav\n2,x,c.mp4\n")
    with pytest.raises(MlaError, match="column `a` holds files of several kinds") as error:
        table.scan(root, path)
    assert "--modality a=audio" in error.value.hint
    assert table.scan(root, path, kinds={"a": "audio"}).problems == []


def test_files_whose_names_say_nothing_are_looked_into(root):
    """`clips/17`, `17.dat`: taken for text, the names of the files would be what is trained on."""
    files = {
        "picture": b"\xff\xd8\xff\xe0",
        "sound": write_audio(root / "x.wav", tone(0.2, 8000), 8000).read_bytes(),
        "clip": write_clip(root / "x.flv", 0.2).read_bytes(),
        "array": b"\x93NUMPY\1\0",
        "page": "caf\u00e9 au lait".encode(),
    }
    lines = ["id,label," + ",".join(files) + ",title"]
    for i in range(3):
        for name, content in files.items():
            (root / f"{name} {i}.dat").write_bytes(content)
        lines.append(f"{i},x," + ",".join(f"{name} {i}.dat" for name in files) + f",title {i}")
    manifest = table.scan(root, write(root, "\n".join(lines) + "\n"))
    kinds = {"picture": "image", "sound": "audio", "clip": "video", "array": "vector", "page": "text_file"}
    assert manifest.modalities == kinds | {"title": "text"}
    assert manifest.problems == []
    assert list(manifest.rows["ref.page"]) == [f"page {i}.dat" for i in range(3)]


def test_a_file_that_says_nothing_needs_a_word(root):
    for i in range(3):
        (root / f"{i}.dat").write_bytes(b"\x00\x01\x02\x03")
    path = write(root, "id,label,a\n" + "".join(f"{i},x,{i}.dat\n" for i in range(3)))
    with pytest.raises(MlaError, match="column `a` holds files of several kinds or of none that is known") as error:
        table.scan(root, path)
    assert "--modality a=audio" in error.value.hint
    assert table.scan(root, path, kinds={"a": "audio"}).problems == []


def test_a_long_column_is_judged_by_some_of_its_cells(root, monkeypatch):
    asked = []
    monkeypatch.setattr(table._Resolver, "kind_of_file", lambda self, cell: asked.append(cell) or "text")
    path = write(root, "id,label,a\n" + "".join(f"{i},x,text {i}\n" for i in range(1000)))
    assert table.scan(root, path).modalities == {"a": "text"}
    assert 32 <= len(asked) <= table.LOOKED_AT
    assert int(asked[-1].split()[1]) > 900


# ---------------------------------------------------------------- paths that leave the root


@pytest.mark.parametrize("way", ["climb", "absolute", "link"])
def test_a_column_of_files_outside_is_refused_whatever_their_names_are(root, tmp_path, way):
    """As `../../etc/passwd`: a path without a telling extension is no text to train on either."""
    (tmp_path / "passwd").write_text("root:x:0:0")
    (root / "linked").symlink_to(tmp_path / "passwd")
    cell = {"climb": "../passwd", "absolute": str(tmp_path / "passwd"), "link": "linked"}[way]
    path = write(root, f"id,label,note\n1,x,{cell}\n2,x,{cell}\n")
    with pytest.raises(MlaError, match=r"2 paths of .* lead outside of") as error:
        table.scan(root, path)
    assert f"(first: `{cell}`)" in error.value.message
    assert "--allow-outside" in error.value.hint
    assert table.scan(root, path, allow_outside=True).modalities == {"note": "text_file"}
    assert table.scan(root, path, kinds={"note": "text"}).modalities == {"note": "text"}  # the words themselves


@pytest.mark.parametrize("way", ["climb", "absolute", "link to a file", "link to a folder", "array row", "cut"])
def test_a_path_outside_is_refused_unless_allowed(root, tmp_path, way):
    (tmp_path / "secret.jpg").write_bytes(b"x")
    (tmp_path / "secret.npy").write_bytes(b"x")
    (tmp_path / "secret.mp4").write_bytes(b"x")
    (root / "linked.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "folder").symlink_to(tmp_path, target_is_directory=True)
    cell = {
        "climb": "../secret.jpg",
        "absolute": str(tmp_path / "secret.jpg"),
        "link to a file": "linked.jpg",
        "link to a folder": "folder/secret.jpg",
        "array row": "../secret.npy::3",
        "cut": "../secret.mp4#t=1,2",
    }[way]
    good = {"array row": "v.npy::0", "cut": "c.mp4"}.get(way, "p.JPG")
    path = write(root, f'id,label,thing\n1,x,{good}\n2,x,"{cell}"\n')
    with pytest.raises(MlaError) as error:
        table.scan(root, path)
    assert f"(first: `{cell}`)" in error.value.message
    assert "--allow-outside" in error.value.hint
    manifest = table.scan(root, path, kinds={"thing": "image"}, allow_outside=True)
    ref = manifest.rows.set_index("id").loc["2", "ref.thing"]
    assert ref == cell
    assert (root / ref.split("::")[0].split("#")[0]).is_file()


def test_absolute_and_winding_paths_inside_become_relative(root):
    (root / "sub").mkdir()
    (root / "inner.jpg").symlink_to(root / "p.JPG")
    text = f"id,label,picture\n1,x,{root / 'p.JPG'}\n2,x,sub/../p.JPG\n3,x,inner.jpg\n4,x,../{root.name}/p.JPG\n"
    manifest = table.scan(root, write(root, text))
    assert list(manifest.rows["ref.picture"]) == ["p.JPG", "p.JPG", "inner.jpg", "p.JPG"]


def test_a_root_that_is_a_link_is_its_target(root, tmp_path):
    (tmp_path / "link").symlink_to(root, target_is_directory=True)
    path = write(root, f"id,label,picture\n1,x,p.JPG\n2,x,{root / 'p.JPG'}\n3,x,{tmp_path / 'link' / 'p.JPG'}\n")
    manifest = table.scan(tmp_path / "link", path)
    assert list(manifest.rows["ref.picture"]) == ["p.JPG"] * 3


def test_a_cell_that_can_be_no_path_is_missing(root):
    path = write(root, f"id,label,picture\n1,x,p.JPG\n2,x,{'y' * 5000}.jpg\n3,x,nul\x00byte.jpg\n")
    manifest = table.scan(root, path)
    assert [(p.kind, p.id) for p in manifest.problems] == [("missing", "2"), ("missing", "3")]


# ---------------------------------------------------------------- tables that cannot be read


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,label,words\n1,x,hi\n", "no column `id`"),
        ("id,words\n1,hi\n", "no column `label`"),
        ("id,label\n1,x\n", "no column with a modality"),
        ("id,label,words\n1,x,\n", "no column with a modality"),
        ("id,label,words,words\n1,x,a,b\n", "two columns `words`"),
        ("id,label,a/b\n1,x,hi\n", "column `a/b` cannot name a modality"),
        ("id,label,..\n1,x,hi\n", "column `..` cannot name a modality"),
        ("", "no column `id`"),
        ("id,label," + ",".join(f"c{i}" for i in range(999)) + "\n", "has 1001 columns"),
    ],
)
def test_a_header_that_cannot_be_used_is_an_error(root, text, message):
    with pytest.raises(MlaError) as error:
        table.scan(root, write(root, text))
    assert message in error.value.message
    assert error.value.hint


def test_other_encodings_missing_files_and_no_table_are_errors(root):
    with pytest.raises(MlaError, match=r"is not UTF-8 \(byte 19\)"):
        table.scan(root, write(root, "id,label,words\n1,x,\u00e9\n", encoding="latin-1"))
    with pytest.raises(MlaError, match="no table"):
        table.scan(root, root / "nowhere.csv")
    with pytest.raises(MlaError, match="no table is named"):
        table.scan(root)
    with pytest.raises(MlaError, match="is a folder, not a table"):
        table.scan(root, root)
    write(root, "not parquet", "my.parquet")
    with pytest.raises(MlaError, match="cannot read"):
        table.scan(root, root / "my.parquet")


def test_a_table_in_the_root_is_found(root):
    write(root, "id,label,words\n1,x,hi\n", "table.csv")
    assert len(table.scan(root).rows) == 1


def test_unlabelled_tables_are_read_when_asked_for(root):
    manifest = table.scan(root, write(root, "id,words\n1,hi\n"), labelled=False)
    assert (manifest.rows.iloc[0]["label"], manifest.classes) == ("", ())


# ---------------------------------------------------------------- protocols


def protocol_rows(root, split="", group=""):
    lines = [f"{i:03d},{'ab'[i % 2]},{split and split(i)},{group and group(i)},text {i}" for i in range(60)]
    return table.scan(root, write(root, "id,label,split,group,words\n" + "\n".join(lines) + "\n")).rows


def test_the_default_protocol_follows_the_table(root):
    rows = protocol_rows(root)
    assert table.default_protocol(rows) == "random"
    counts = pd.crosstab(rows["label"], table.split(rows, "random", 0, 0))
    assert (counts.loc["a", ["train", "val", "test"]] == [18, 6, 6]).all()
    with pytest.raises(MlaError, match="no official split"):
        table.split(rows, "official", 0, 0)


def test_official_keeps_the_tables_split_and_carves_val_only_where_there_is_none(root):
    rows = protocol_rows(root, split=lambda i: ("Train", "train", "DEV", "Test")[i // 2 % 4])
    assert table.default_protocol(rows) == "official"
    np.testing.assert_array_equal(table.split(rows, "official", 0, 0), rows["split"])
    rows = protocol_rows(root, split=lambda i: "test" if i >= 40 else "train", group=lambda i: f"g{i // 4}")
    split = table.split(rows, "official", 0, 0)
    assert (split == "test").sum() == 20
    assert 0 < (split == "val").sum() <= 8
    assert not set(rows["group"][split == "val"]) & set(rows["group"][split == "train"])
    splits.check_classes(split, rows["label"], ["a", "b"])


def test_random_keeps_groups_whole(root):
    rows = protocol_rows(root, group=lambda i: f"g{i // 4}")
    split = table.split(rows, "random", 0, 0)
    assert all(len(set(split[rows["group"] == group])) == 1 for group in set(rows["group"]))


def test_an_unknown_split_is_listed_and_the_row_is_not_used(root):
    manifest = table.scan(root, write(root, "id,label,split,words\n1,x,train,hi\n2,x,maybe,hi\n"))
    assert [(p.kind, p.id) for p in manifest.problems] == [("bad_row", "2")]
    assert list(manifest.rows["split"]) == ["train", ""]


def test_numeric_labels_sort_as_numbers(root):
    manifest = table.scan(root, write(root, "id,label,words\n1,10,hi\n2,9,hi\n3,-1,hi\n"))
    assert manifest.classes == ("-1", "9", "10")


def test_the_working_directory_does_not_matter(root, monkeypatch):
    path = write(root, full_table())
    whole = table.scan(root, path)
    monkeypatch.chdir(root.parent)
    relative = table.scan(root.relative_to(root.parent), os.path.relpath(path))
    assert relative.fingerprint() == whole.fingerprint()
