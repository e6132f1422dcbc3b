"""From raw trees of the five public layouts to a table, through the command line; and what spoilt trees lead to."""

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import raw_trees
from typer.testing import CliRunner

from mla_cli.cli import app
from mla_cli.data.store import Store

CLEAN: dict[str, dict[str, Any]] = {  # odd but sound: every one of these samples can be used
    "cremad": {"actors": 6, "upper_case": True, "odd_names": True},
    "kinetics_sounds": {"upper_case": True, "annotations": True},
    "food101": {"pictures": 6, "upper_case": True, "comma_title": True},
    "mvsa": {"tweets": 12, "upper_case": True, "latin": True, "contradiction": True},
    "iemocap": {"upper_case": True, "remarks": True, "other_emotion": True},
}
SMALL: dict[str, dict[str, str]] = {  # what is smaller here than in the recipe
    "audio": {"frames": "48", "mels": "24"},
    "visual": {"size": "16"},
}
MODALITIES = {
    "cremad": ("audio", "visual"),
    "kinetics_sounds": ("audio", "visual"),
    "food101": ("visual", "text"),
    "mvsa": ("visual", "text"),
    "iemocap": ("audio", "visual", "text"),
}


def mla(*arguments: str) -> Any:
    return CliRunner().invoke(app, [*arguments], catch_exceptions=False)


def smaller(name: str) -> list[str]:
    pairs = [f"features.{m}.{key}={value}" for m in MODALITIES[name] for key, value in SMALL.get(m, {}).items()]
    pairs += [f"encoders.{m}.channels=4" for m in MODALITIES[name] if m != "text"]
    return [part for pair in pairs for part in ("--set", pair)]


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLA_RAW", raising=False)


@pytest.mark.parametrize("name", raw_trees.MAKERS)
def test_from_raw_files_to_a_table(name: str) -> None:
    root = f"raw data \u00e9/{name}"
    count = raw_trees.MAKERS[name](Path(root), **CLEAN[name])
    prepared = mla("prepare", name, "--root", root, "--workers", "1", *smaller(name))
    assert prepared.exit_code == 0, prepared.stderr
    each = ", ".join(f"{m} {count}" for m in sorted(MODALITIES[name]))
    assert prepared.stdout.splitlines()[0] == f"{name} prepared data/{name}: {count} samples ({each})"
    assert not Path("data", name, "problems.csv").exists()

    short = ("--set", "train.epochs=1", "--set", "train.batch_size=8")
    trained = mla("train", "--recipe", f"{name}_small", *short, *smaller(name))
    assert trained.exit_code == 0, trained.stderr
    assert "epoch   1/1" in trained.stderr

    scored = mla("eval", "--missing-rate", "0.2", "--mask-seeds", "0..1", "--format", "csv")
    assert scored.exit_code == 0, scored.stderr
    Path("table.csv").write_text(scored.stdout)
    rows = pd.read_csv("table.csv")
    assert set(rows["dataset"]) == {name}
    accuracy = rows[(rows["metric"] == "accuracy") & (rows["output"] == "fused")]
    assert set(accuracy["missing_rate"]) == {0.2}
    assert accuracy["value"].between(0, 1).all()
    assert mla("eval").stdout.count("accuracy") >= 2  # the same as a table to read


# ---------------------------------------------------------------- spoilt trees

SPOILT: dict[str, tuple[dict[str, Any], dict[str, int]]] = {  # how, and the problems by kind
    "cremad": (
        {"actors": 3, "missing": True, "lfs_pointer": True, "truncated": True, "empty": True, "silent": True}
        | {"no_audio": True, "unknown_label": True, "bad_name": True, "duplicate": True},
        {"missing": 1, "lfs_pointer": 1, "undecodable": 2, "empty": 1, "silent": 1, "unknown_label": 2, "bad_row": 1}
        | {"duplicate_id": 1},
    ),
    "kinetics_sounds": (
        {"clips": 2, "missing": True, "other_class": True, "bad_annotation": True, "duplicate": True}
        | {"no_class": True, "truncated": True, "silent_track": True},
        {"missing": 1, "bad_row": 1, "duplicate_id": 1, "unknown_label": 1, "undecodable": 2, "no_audio_stream": 1},
    ),
    "food101": (
        {"pictures": 3, "missing_picture": True, "missing_title": True, "unknown_label": True, "bad_row": True}
        | {"latin_title": True, "empty": True, "truncated": True, "duplicate": True},
        {"missing": 2, "bad_row": 1, "duplicate_id": 1, "empty": 1, "text_undecodable": 1, "undecodable": 1}
        | {"unknown_label": 2},
    ),
    "mvsa": (
        {"tweets": 7, "contradiction": True, "missing": True, "unlabelled": True, "unknown_label": True}
        | {"bad_row": True, "duplicate": True, "empty": True, "truncated": True},
        {"missing": 1, "bad_row": 1, "duplicate_id": 1, "empty": 1, "undecodable": 1, "unknown_label": 3},
    ),
    "iemocap": (
        {"sessions": 3, "missing_sound": True, "missing_text": True, "missing_video": True, "unknown_label": True}
        | {"bad_row": True, "duplicate": True, "latin_text": True, "remarks": True, "other_emotion": True},
        {"missing": 15, "bad_row": 2, "duplicate_id": 1, "text_undecodable": 1, "unknown_label": 1},
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_tree_is_refused_with_a_list_and_admitted_when_told_so(name: str) -> None:
    options, kinds = SPOILT[name]
    raw_trees.MAKERS[name](Path("raw") / name, **options)
    how = ("prepare", name, "--workers", "1", *smaller(name))
    counts = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))

    refused = mla(*how)
    assert refused.exit_code == 1
    assert f" samples cannot be used ({counts})" in refused.stderr
    assert f"samples of `{name}` are bad, more than 1.0% (first: " in refused.stderr
    assert "accept them with `--max-bad 1`" in refused.stderr
    assert not Path("data", name).exists()

    admitted = mla(*how, "--max-bad", "1")
    assert admitted.exit_code == 0, admitted.stderr
    problems = pd.read_csv(Path("data", name, "problems.csv"), dtype=str, keep_default_na=False)
    assert problems["kind"].value_counts().to_dict() == kinds
    assert problems["file"].str.len().min() > 0
    assert problems["reason"].str.len().min() > 0
    assert f"\n{len(problems)} problems, with file and reason: data/{name}/problems.csv\n" in admitted.stdout
    index = Store.open(Path("data", name)).index
    lost = set(problems.loc[problems["kind"] != "duplicate_id", "id"])
    assert lost
    assert not lost & set(index["id"])
    assert (index[[f"row.{m}" for m in MODALITIES[name]]] >= 0).all(axis=None)
    assert f": {len(index)} samples (" in admitted.stdout


# ---------------------------------------------------------------- what two sides share


def test_equal_files_on_two_sides_are_reported_and_training_warns() -> None:
    raw_trees.make_mvsa(Path("raw/mvsa"))
    how = ("--set", "train.epochs=1", "--set", "train.batch_size=8", *smaller("mvsa"))
    clean = mla("prepare", "mvsa", *smaller("mvsa"))
    assert "no identical visual files on two sides" in clean.stdout
    assert "leaks" not in mla("train", "--recipe", "mvsa_small", *how).stderr

    for i in range(2, 7):  # the positive ones: some are in train and some in test
        Path(f"raw/mvsa/data/{i}.jpg").write_bytes(Path("raw/mvsa/data/1.jpg").read_bytes())
    spoilt = mla("prepare", "mvsa", "--force", *smaller("mvsa"))
    shared = re.search(
        r"^(1|2) visual files of test are identical to one of train \(first: . = .\)$", spoilt.stdout, re.M
    )
    assert shared, spoilt.stdout
    assert "no identical text files on two sides" in spoilt.stdout
    trained = mla("train", "--recipe", "mvsa_small", *how)
    assert trained.exit_code == 0
    assert f"warning: protocol random leaks: {shared[0]}" in trained.stderr


def test_the_leakage_of_every_protocol_is_stored_and_what_would_leak_is_said() -> None:
    raw_trees.make_cremad(Path("raw/cremad"), actors=6)
    prepared = mla("prepare", "cremad", *smaller("cremad"))
    assert re.search(r"^protocol random would leak: (\d) of \1 groups of test are in train too", prepared.stdout, re.M)
    assert "groups are on one side only (train/val/test: 4/1/1)" in prepared.stdout
    stored = json.loads(Path("data/cremad/leakage.json").read_text())
    assert (stored["split_seed"], stored["fold"]) == (0, 0)
    assert set(stored["protocols"]) == {"actor", "actor_fold", "random"}
    for protocol, report in stored["protocols"].items():
        shared = report["groups"]["group"]["train+test"]["count"]
        assert (shared > 0) == (protocol == "random")
        assert set(report["identical"]) == {"audio", "visual"}
        assert sum(report["balance"]["test"].values()) == report["samples"]["test"] > 0

    Path("test.csv").write_text("".join(f"100{a}_DFA_{e}_XX,{e}\n" for a in (1, 2) for e in raw_trees.EMOTIONS))
    Path("train.csv").write_text("".join(f"100{a}_DFA_{e}_XX,{e}\n" for a in (3, 4, 5) for e in raw_trees.EMOTIONS))
    assert mla("prepare", "cremad", "--split-file", "train.csv,test.csv", *smaller("cremad")).exit_code == 0
    stored = json.loads(Path("data/cremad/leakage.json").read_text())
    assert stored["protocols"]["file"]["groups"]["group"]["number"]["test"] == 2


# ---------------------------------------------------------------- what is said before and after the work


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--protocol", "radnom"), "error: `mvsa` has no protocol `radnom`\nhint: did you mean `random`?"),
        (
            ("--protocol", "file"),
            "error: protocol `file` needs a list of the splits\nhint: pass it with `--split-file LIST`",
        ),
        (("--split-file", "nowhere"), "error: no split list `nowhere`\n"),
    ],
)
def test_a_split_that_cannot_be_made_is_refused_before_the_work(words: tuple[str, str], message: str) -> None:
    raw_trees.make_mvsa(Path("raw/mvsa"))
    for how in ((), ("--check",), ("--dry-run",)):
        refused = mla("prepare", "mvsa", *words, *how)
        assert refused.exit_code == 1
        assert message in refused.stderr
    assert not Path("data").exists()


def write_lists(folder: str, train: range, test: range) -> str:
    """QMF's form for train, MLA's for test; `gone` is on both lists and not on disk."""
    Path(folder).mkdir()
    lines = [f'{{"id": {i}, "img": "data/{i}.jpg", "text": "x", "label": ""}}' for i in [*train, 77777]]
    Path(folder, "train.jsonl").write_text("\n".join(lines) + "\n")
    Path(folder, "my_test.txt").write_text("".join(f"{i}.jpg label\n" for i in [*test, 77777]))
    return folder


def test_lists_that_do_not_fit_are_told_with_the_error_and_in_training() -> None:
    raw_trees.make_mvsa(Path("raw/mvsa"))  # 1 to 6 positive, 7 to 12 neutral, 13 to 18 negative
    facts = ("2 samples on a list but not on disk; first: 77777", "lists of different families are mixed")
    lists = write_lists("bad", range(1, 13), range(13, 16))
    bad = mla("prepare", "mvsa", "--split-file", lists, *smaller("mvsa"))
    assert bad.exit_code == 1
    assert "error: no sample of class `negative` in split `train`" in bad.stderr
    assert all(fact in bad.stderr for fact in facts)

    some = [i for i in range(1, 19) if i % 3]
    lists = write_lists("good", some, [i for i in range(1, 19) if i % 3 == 0])  # type: ignore[arg-type]
    good = mla("prepare", "mvsa", "--split-file", lists, *smaller("mvsa"))
    assert good.exit_code == 0, good.stderr
    assert all(fact in good.stdout for fact in facts)
    short = ("--set", "train.epochs=1", "--set", "train.batch_size=8")
    trained = mla("train", "--recipe", "mvsa_small", "--split-file", lists, *short, *smaller("mvsa"))
    assert trained.exit_code == 0, trained.stderr
    assert facts[0] in trained.stderr
    assert f"warning: {facts[1]}" in trained.stderr


def test_the_classes_of_kinetics_sounds_can_be_chosen() -> None:
    raw_trees.make_kinetics(Path("raw/kinetics_sounds"), classes=("tickling", "strumming guitar", "zumba"))
    how = ("prepare", "kinetics_sounds", "--dry-run")
    assert "classes: tickling 8\n" in mla(*how).stdout
    assert "classes: tickling 8, strumming guitar 8\n" in mla(*how, "--classes", "ks32").stdout
    Path("my classes.txt").write_text("\ufeffZumba\n\n tickling\n", encoding="utf-8")
    assert "classes: zumba 8, tickling 8\n" in mla(*how, "--classes", "my classes.txt").stdout
    unknown = mla(*how, "--classes", "ks34")
    assert unknown.exit_code == 1
    assert (
        "error: no class list `ks34`\nhint: choose one of `ks31`, `ks32`, or name a file with one class a line"
        in unknown.stderr
    )
    Path("none.txt").write_bytes(b"\xff\xfe")
    assert "error: no class in `none.txt`" in mla(*how, "--classes", "none.txt").stderr
    assert "error: `--classes` does not go with `mvsa`" in mla("prepare", "mvsa", "--classes", "ks32").stderr
