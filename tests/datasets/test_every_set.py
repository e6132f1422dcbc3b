"""What every data set file must have, and what every protocol of every data set must do."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import raw_trees

from mla_cli import registry
from mla_cli.data import splits
from mla_cli.data.leakage import leakage_report
from mla_cli.data.manifest import MODALITY_KINDS, PROBLEM_KINDS
from mla_cli.errors import MlaError

DEMO = Path(registry.__file__).parent / "demo"
NAMES = registry.names("datasets")
PUBLIC = {
    "cremad": raw_trees.make_cremad,
    "kinetics_sounds": raw_trees.make_kinetics,
    "food101": raw_trees.make_food101,
    "mvsa": raw_trees.make_mvsa,
    "iemocap": raw_trees.make_iemocap,
}
BUILT_IN = ("digits", "emoji", "mfeat")
OFFERED = [
    (name, protocol)
    for name in NAMES
    for protocol in registry.load("datasets", name).PROTOCOLS
    if name != "table" and protocol != "file"
]
# Which protocols promise that a group is on one side, and of how many folds.
DISJOINT = {
    ("cremad", "actor"),
    ("cremad", "actor_fold"),
    ("kinetics_sounds", "official"),
    ("kinetics_sounds", "random"),
    ("iemocap", "session"),
    ("emoji", "shipped"),
    ("emoji", "random"),
    ("digits", "shipped"),
    ("digits", "speaker_fold"),
    ("mfeat", "shipped"),
    ("mfeat", "random"),
}
FOLDS = {("cremad", "actor_fold"): 5, ("iemocap", "session"): 5, ("digits", "speaker_fold"): 6}
FIXED = {("emoji", "shipped"), ("digits", "shipped"), ("mfeat", "shipped"), ("iemocap", "session")}


@pytest.fixture(scope="module")
def manifests(tmp_path_factory):
    """Data set -> manifest: the built-in ones whole, the public ones of clean small trees."""
    found = {name: registry.load("datasets", name).scan(DEMO / name) for name in BUILT_IN}
    for name, make in PUBLIC.items():
        root = tmp_path_factory.mktemp(name)
        number = make(root)
        found[name] = registry.load("datasets", name).scan(root)
        assert len(found[name].rows) == number
    return found


def test_the_folder_holds_what_the_tests_know():
    assert set(NAMES) == {*PUBLIC, *BUILT_IN, "table"}


@pytest.mark.parametrize("name", NAMES)
def test_every_set_says_where_it_comes_from_and_what_it_holds(name):
    module = registry.load("datasets", name)
    for fact in ("TITLE", "CITATION", "LICENSE", "TERMS", "SOURCE", "TREE"):
        assert getattr(module, fact).strip(), fact
    assert isinstance(module.ATTRIBUTION, str)
    assert module.__doc__
    assert module.PROTOCOLS
    assert all(line.strip() for line in module.PROTOCOLS.values())
    assert set(module.MODALITIES.values()) <= set(MODALITY_KINDS)
    assert len(set(module.CLASSES)) == len(module.CLASSES)
    assert getattr(module, "BUILT_IN", False) == (name in BUILT_IN)
    if name != "table":
        assert len(module.CLASSES) >= 2
        assert module.MODALITIES


def test_the_number_of_classes_is_the_published_one():
    numbers = {name: len(registry.load("datasets", name).CLASSES) for name in PUBLIC}
    assert numbers == {"cremad": 6, "kinetics_sounds": 31, "food101": 101, "mvsa": 3, "iemocap": 4}


def test_sets_whose_licence_asks_for_it_are_attributed():
    digits = registry.load("datasets", "digits").ATTRIBUTION
    assert "THESE SOUND FILES WERE MADE BY MARCO MENARDI AND HIS WIFE" in digits
    for name in ("Allison Smith", "June Wallack", "Carlo Flora", "Maxim Topal", "Armelle Desjardins", "LeCun"):
        assert name in digits
    assert "CC BY 4.0" in registry.load("datasets", "mfeat").ATTRIBUTION


@pytest.mark.parametrize("name", [n for n in NAMES if n != "table"])
def test_a_clean_tree_has_no_problems_and_every_row_is_sound(manifests, name):
    manifest, module = manifests[name], registry.load("datasets", name)
    rows = manifest.rows
    assert manifest.problems == []
    assert manifest.modalities == module.MODALITIES
    assert rows["id"].is_unique
    assert rows["id"].is_monotonic_increasing
    assert set(rows["label"]) == set(manifest.classes)
    assert list(manifest.classes) == [c for c in module.CLASSES if c in manifest.classes]
    assert set(rows["split"]) <= {"train", "val", "test", ""}
    refs = rows[[f"ref.{m}" for m in manifest.modalities]]
    assert refs.notna().any(axis=1).all()
    if name != "digits":
        assert refs.notna().all(axis=None)


@pytest.mark.parametrize("name", PUBLIC)
def test_another_folder_is_refused_with_the_expected_tree(name, tmp_path):
    module = registry.load("datasets", name)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.txt").write_text("x")
    with pytest.raises(MlaError) as error:
        module.scan(tmp_path)
    assert module.TREE in error.value.hint
    with pytest.raises(MlaError, match="no folder"):
        module.scan(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["cremad", "food101", "mvsa", "iemocap"])
def test_an_archive_unpacked_into_a_folder_of_its_own_is_found(name, tmp_path):
    size = {"actors": 1} if name == "cremad" else {}
    number = PUBLIC[name](tmp_path / "some release {v2}", **size)
    manifest = registry.load("datasets", name).scan(tmp_path)
    assert len(manifest.rows) == number
    assert manifest.problems == []


@pytest.mark.parametrize(("name", "protocol"), OFFERED)
def test_every_protocol_covers_every_class_in_every_split(manifests, name, protocol):
    manifest, module = manifests[name], registry.load("datasets", name)
    for fold in range(FOLDS.get((name, protocol), 1)):
        for seed in (0, 1):
            split = module.split(manifest.rows, protocol, seed, fold)
            assert split.shape == (len(manifest.rows),)
            assert set(split) <= {"train", "val", "test", ""}
            splits.check_classes(split, manifest.rows["label"], manifest.classes)


@pytest.mark.parametrize(("name", "protocol"), OFFERED)
def test_every_protocol_is_reproducible_and_blind_to_row_order(manifests, name, protocol):
    rows, module = manifests[name].rows, registry.load("datasets", name)
    split = module.split(rows, protocol, 0, 0)
    order = np.random.default_rng(0).permutation(len(rows))
    np.testing.assert_array_equal(module.split(rows.iloc[order], protocol, 0, 0), split[order])
    moved = (module.split(rows, protocol, 1, 0) != split).any()
    assert moved == ((name, protocol) not in FIXED)


@pytest.mark.parametrize(("name", "protocol"), OFFERED)
def test_groups_are_on_one_side_where_that_is_promised(manifests, name, protocol):
    rows, module = manifests[name].rows, registry.load("datasets", name)
    for fold in range(FOLDS.get((name, protocol), 1)):
        report = leakage_report(rows, module.split(rows, protocol, 0, fold))
        if (name, protocol) in DISJOINT:
            if name != "mfeat":  # all its twins train
                assert report["groups"]["group"]["number"]["test"] >= 1
            assert not report["leaks"]
            assert report["groups"]["group"]["train+val"]["count"] == 0


@pytest.mark.parametrize(("name", "protocol"), OFFERED)
def test_a_fold_out_of_range_is_an_error(manifests, name, protocol):
    rows, module = manifests[name].rows, registry.load("datasets", name)
    number = FOLDS.get((name, protocol), 1)
    for fold in (-1, number):
        with pytest.raises(MlaError, match=f"fold `{fold}` is out of range"):
            module.split(rows, protocol, 0, fold)


@pytest.mark.parametrize("name", FOLDS)
def test_the_folds_together_test_every_group_once(manifests, name):
    rows, module = manifests[name[0]].rows, registry.load("datasets", name[0])
    rows = rows[rows["group"] != ""]
    tested = sum((module.split(rows, name[1], 0, fold) == "test").astype(int) for fold in range(FOLDS[name]))
    assert (tested == 1).all()


@pytest.mark.parametrize("name", NAMES)
def test_unknown_protocols_are_refused(manifests, name):
    module = registry.load("datasets", name)
    rows = manifests.get(name, manifests["mvsa"]).rows
    with pytest.raises(MlaError, match="no protocol `actr`"):
        module.split(rows, "actr", 0, 0)
    if "file" in module.PROTOCOLS:
        with pytest.raises(MlaError, match="needs a list"):
            module.split(rows, "file", 0, 0)


# ---------------------------------------------------------------- what leaks


def test_cremad_random_has_all_actors_on_both_sides_and_actor_none(manifests):
    rows, cremad = manifests["cremad"].rows, registry.load("datasets", "cremad")
    random = leakage_report(rows, cremad.split(rows, "random", 0, 0))
    group = random["groups"]["group"]
    assert group["train+test"]["count"] == group["number"]["test"] > 0
    assert random["leaks"]
    actor = leakage_report(rows, cremad.split(rows, "actor", 0, 0))
    assert actor["groups"]["group"]["number"] == {"train": 7, "val": 1, "test": 2}
    assert not actor["leaks"]


def test_iemocap_random_has_dialogues_and_speakers_on_both_sides(manifests):
    rows, iemocap = manifests["iemocap"].rows, registry.load("datasets", "iemocap")
    report = leakage_report(rows, iemocap.split(rows, "random", 0, 0))
    assert report["groups"]["group"]["train+test"]["count"] >= 8
    assert report["groups"]["speaker"]["train+test"]["count"] >= 8
    clean = leakage_report(rows, iemocap.split(rows, "session", 0, 2))
    assert clean["groups"]["session"]["number"] == {"train": 3, "val": 1, "test": 1}
    assert clean["groups"]["speaker"]["train+test"]["count"] == 0


def test_every_problem_a_scan_can_raise_is_of_a_known_kind(tmp_path):
    everything = {
        "cremad": {"missing", "unknown_label", "bad_name", "duplicate", "upper_case"},
        "kinetics_sounds": {"missing", "bad_annotation", "duplicate", "no_class"},
        "food101": {"missing_picture", "missing_title", "unknown_label", "bad_row", "latin_title", "duplicate"},
        "mvsa": {"missing", "unlabelled", "unknown_label", "bad_row", "duplicate"},
        "iemocap": {"missing_sound", "missing_text", "unknown_label", "bad_row", "duplicate", "latin_text"},
    }
    sizes = {"cremad": {"actors": 1}, "kinetics_sounds": {"clips": 1}, "iemocap": {"sessions": 1}}
    for name, options in everything.items():
        PUBLIC[name](tmp_path / name, **sizes.get(name, {}), **dict.fromkeys(options, True))
        problems = registry.load("datasets", name).scan(tmp_path / name).problems
        assert problems
        for problem in problems:
            assert problem.kind in PROBLEM_KINDS
            assert problem.file
            assert problem.reason


def test_data_sets_are_read_without_torch_or_a_decoder():
    code = (
        "import sys; from mla_cli import registry; from mla_cli.data import leakage, split_files;"
        "[registry.load('datasets', name) for name in registry.names('datasets')];"
        "sys.exit(', '.join({'torch', 'torchaudio', 'av'} & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=DEMO.parent.parent)
