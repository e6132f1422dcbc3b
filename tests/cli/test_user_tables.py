"""A user's own table: prepare, train without a recipe, copy the recipe made for it, score new rows."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from command_line import mla

SMALL = ("--set", "train.epochs=2", "--set", "train.batch_size=4", "--set", "train.threads=1")


def test_from_table_to_predictions(own_table: Path) -> None:
    trained = mla("train", *SMALL)
    assert trained.code == 0, trained.stderr
    assert trained.stderr.startswith("no recipe for data/my: encoders chosen by kind (title: ngram_bag, ")
    (run,) = Path("runs").glob("my-mla-s0-f0-*")
    rows = pd.read_csv(io.StringIO(mla("eval", "--split", "val", "--format", "csv").stdout))
    assert rows["dataset"].unique().tolist() == ["my"]
    assert rows["protocol"].unique().tolist() == ["random"]

    Path("new.csv").write_text("id,title,note\nn1,barks,loud\nn2,meows,\nn3,,quiet\n", "utf-8")
    scored = mla("eval", "--table", "new.csv")
    assert scored.code == 0, scored.stderr
    assert scored.stdout.startswith(f"scored 3 rows of new.csv with {run}, wrote predictions.parquet\npredicted: ")
    table = pq.read_table("predictions.parquet")
    assert table.column("id").to_pylist() == ["n1", "n2", "n3"]
    assert table.column("label").to_pylist() == [-1, -1, -1]
    assert table.column("present.note").to_pylist() == [True, False, True]
    absent = np.array(table.column("logits.note").to_pylist()[1])
    assert np.isnan(absent).all()
    assert set(table.column("predicted").to_pylist()) <= {"cat", "dog [audio]"}
    again = mla("eval", "--table", "new.csv")
    assert (again.code, again.stderr.splitlines()[1:]) == (
        1,
        ["error: `predictions.parquet` exists", "hint: name another file with `--out`"],
    )
    assert mla("eval", "--table", "new.csv", "--out", "other.parquet", "--quiet").stderr == ""

    Path("labelled.csv").write_text("id,label,title,note\nn1,horse,barks,loud\nn2,,meows,\nn3,cat,,quiet\n", "utf-8")
    assert mla("eval", "--table", "labelled.csv", "--out", "labelled.parquet").code == 0
    labelled = pq.read_table("labelled.parquet")  # labels are not used, be they of the run's classes or not
    assert str(labelled.to_pydict()) == str(table.to_pydict())


def test_absent_cells_are_counted_and_skipped(own_table: Path) -> None:
    output = mla("prepare", "table", "--table", "my.csv", "--quiet")
    assert "my: 12 samples (note 8, title 12)\n" in output.stdout


def test_the_recipe_made_for_it_is_a_file_to_edit(own_table: Path) -> None:
    assert mla("recipes", "copy", "my", "edited.yaml").code == 0
    text = Path("edited.yaml").read_text("utf-8")
    assert text.startswith("name: edited\ndataset:\n  name: table\n  store: my\n")
    Path("edited.yaml").write_text(text.replace("shared_width: 128", "shared_width: 16"), "utf-8")
    output = mla("train", "--recipe", "edited.yaml", *SMALL)
    assert output.code == 0, output.stderr
    assert list(Path("runs").glob("edited-mla-s0-*"))


def test_brackets_in_names_are_not_markup(own_table: Path) -> None:
    """A class, a column, a file and a folder with brackets; Rich would take `[audio]` for a style and drop it."""
    assert "dog [audio] 6" in mla("prepare", "table", "--table", "my.csv", "--dry-run").stdout
    Path("[raw]").mkdir()
    Path("[raw]/[new].csv").write_text(own_table.read_text("utf-8"), "utf-8")
    output = mla("prepare", "table", "--table", "[raw]/[new].csv", "--workers", 1)
    assert "scanning [raw]\n" in output.stderr
    assert output.stdout.startswith("table prepared data/[new]: 12 samples")
    trained = mla("train", *SMALL)
    assert trained.code == 0, trained.stderr
    assert trained.stdout.startswith("[new]-mla-s0-f0-")
    assert "data [new], method mla" in trained.stderr
    stderr = mla("prepare", "table", "--table", "[raw]/[no].csv").stderr
    assert "error: no table `[raw]/[no].csv`" in stderr


def test_escape_codes_in_labels_are_shown_not_obeyed(folder: Path) -> None:
    labels = ("red", "\x1b[31mred")
    rows = "".join(f"r{i},{labels[i % 2]},text {i}\n" for i in range(10))
    Path("my.csv").write_text(f"id,label,title\n{rows}", "utf-8")
    output = mla("prepare", "table", "--table", "my.csv", "--dry-run")
    assert "\x1b" not in output.stdout + output.stderr
    assert "\\x1b[31mred 5" in output.stdout


def test_a_column_can_be_left_out_and_the_set_named(own_table: Path) -> None:
    output = mla(
        "prepare", "table", "--table", "my.csv", "--name", "titles", "--modality", "note=ignore", "--workers", 1
    )
    assert output.stdout.startswith("table prepared data/titles: 12 samples (title 12)\n")


def test_paths_out_of_the_root_need_permission(folder: Path) -> None:
    Path("inside").mkdir()
    np.save("far.npy", np.ones((12, 3), np.float32))
    rows = "".join(f"r{i},{'ab'[i % 2]},../far.npy::{i}\n" for i in range(12))
    Path("inside/my.csv").write_text(f"id,label,point\n{rows}", "utf-8")
    output = mla("prepare", "table", "--table", "inside/my.csv", "--quiet", "--workers", 1)
    assert output.code == 1
    assert "lead outside of `inside`" in output.stderr
    assert "pass `--allow-outside` if you trust the table" in output.stderr
