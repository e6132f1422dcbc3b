"""Which recipe is meant where none is named: the machine's accelerator and the prepared store decide."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import mla

from mla_cli.data.store import FORMAT, Store
from mla_cli.engine import choose
from mla_cli.engine.choose import choose_recipe, epoch_on_cpu, own_recipes, recipe_for_dataset
from mla_cli.engine.data import prepare_command
from mla_cli.engine.latest import remember
from mla_cli.errors import MlaError
from mla_cli.recipe import load_recipe

PAPER = ("cremad", "food101", "iemocap", "kinetics_sounds", "mvsa")
VOCABULARY = "features.text.vocabulary=vocab.txt"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """machine("cuda"), machine("mps") or machine(None): what the machine has. Epochs are reckoned in one test only."""
    monkeypatch.setattr(choose, "epoch_on_cpu", lambda recipe, store: "")
    return lambda found: monkeypatch.setattr(choose, "accelerator", lambda: found)


def store_of(recipe_name: str, data_dir: Path, *overrides: str, name: str | None = None) -> None:
    """What `choose` reads of a store made for a recipe."""
    recipe = load_recipe(recipe_name, overrides)
    modalities = {m: {"spec": spec.model_dump(), "tokens": 30522} for m, spec in recipe.features.items()}
    manifest = {
        "format": FORMAT,
        "dataset": recipe.dataset.name,
        "order": list(modalities),
        "modalities": modalities,
        "classes": ["a", "b"],
        "counts": {"samples": 1000} | dict.fromkeys(modalities, 1000),
    }
    path = data_dir / (name or recipe.store)
    path.mkdir(parents=True)
    (path / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    remember(data_dir, path.name)


# ---------------------------------------------------------------- prepare


@pytest.mark.parametrize("name", PAPER)
def test_a_machine_without_accelerator_prepares_for_the_small_recipe(name: str, machine: Any) -> None:
    machine(None)
    recipe, why = recipe_for_dataset(name, None, ())
    assert recipe.name == f"{name}_small"
    assert why == f"recipe {name}_small: there is no accelerator here; the other one: --recipe {name}"


@pytest.mark.parametrize("found", ["cuda", "mps"])
@pytest.mark.parametrize("name", ["cremad", "kinetics_sounds"])
def test_a_machine_with_an_accelerator_prepares_for_the_papers_recipe(name: str, found: str, machine: Any) -> None:
    machine(found)
    recipe, why = recipe_for_dataset(name, None, ())
    assert recipe.name == name
    assert why == f"recipe {name}: there is an accelerator here, {found}; the other one: --recipe {name}_small"


def test_a_named_recipe_is_taken_whatever_the_machine(machine: Any) -> None:
    for found in (None, "cuda"):
        machine(found)
        assert recipe_for_dataset("cremad", "cremad_small", ())[0].name == "cremad_small"
        recipe, why = recipe_for_dataset("cremad", "cremad", ())
        assert (recipe.name, why) == ("cremad", "")


def test_built_in_data_ask_nothing_of_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(choose, "accelerator", lambda: pytest.fail("the machine was looked at"))
    for name in ("emoji", "digits", "mfeat", "table"):
        assert recipe_for_dataset(name, None, ())[1] == ""
    assert choose_recipe(None, tmp_path)[0].name == "emoji"
    store_of("emoji_48", tmp_path)
    assert choose_recipe(None, tmp_path)[0].name == "emoji_48"


def test_torch_is_not_imported_where_the_question_does_not_arise(tmp_path: Path) -> None:
    code = """if True:
        import sys
        from pathlib import Path
        from mla_cli.engine.choose import choose_recipe, recipe_for_dataset
        choose_recipe(None, Path("data"))
        recipe_for_dataset("emoji", None, ())
        recipe_for_dataset("cremad", "cremad", ())
        print("torch" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("name", ["food101", "mvsa", "iemocap"])
def test_a_missing_vocabulary_is_told_before_anything_is_decoded(name: str, tmp_path: Path) -> None:
    with pytest.raises(MlaError) as error:
        recipe_for_dataset(name, name, ())
    assert error.value.message == "`features.text`: `tokens: wordpiece` needs a vocabulary"
    assert "--set features.text.vocabulary=FILE" in error.value.hint
    with pytest.raises(MlaError, match="no vocabulary at `nowhere`"):
        recipe_for_dataset(name, name, ["features.text.vocabulary=nowhere"])
    recipe_for_dataset(name, name, (), building=False)  # to verify raw files it is not needed
    file = tmp_path / "vocab.txt"
    file.write_text("[PAD]\n[UNK]\ncat\n", "utf-8")
    recipe_for_dataset(name, name, [f"features.text.vocabulary={file}"])


@pytest.mark.parametrize(
    ("key", "spec"),
    [
        ("features.text.vocabulary", {"kind": "text", "tokens": "tokenizer", "vocabulary": "not/in/here"}),
        ("features.audio.model", {"kind": "extractor", "model": "not/in/here"}),
    ],
)
def test_a_missing_tokenizer_or_extractor_is_told_before_anything_is_decoded(key: str, spec: Any) -> None:
    modality = key.split(".")[1]
    recipe = load_recipe(None, base={"name": "own", "dataset": {"name": "iemocap"}, "features": {modality: spec}})
    with pytest.raises(MlaError, match=f"^`{key}`: no folder `not/in/here`"):
        choose.check_features(recipe, building=True)
    choose.check_features(recipe, building=False)


def test_a_normalisation_that_does_not_fit_is_told_before_anything_is_decoded() -> None:
    with pytest.raises(MlaError, match="does not fit features of kind `fbank`"):
        recipe_for_dataset("cremad", "cremad", ["encoders.audio.normalise=imagenet"])


def test_a_released_recipe_wants_its_lists(tmp_path: Path) -> None:
    with pytest.raises(MlaError, match="protocol `file` needs a list") as error:
        recipe_for_dataset("cremad", "cremad_released", ())
    assert "--split-file" in error.value.hint


# ---------------------------------------------------------------- the command that prepares


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("emoji", "mla prepare emoji"),
        ("emoji_48", "mla prepare emoji --recipe emoji_48"),
        ("cremad", "mla prepare cremad --recipe cremad --root RAW_FOLDER"),
        ("cremad_small", "mla prepare cremad --recipe cremad_small --root RAW_FOLDER"),
        ("cremad_released", "mla prepare cremad --recipe cremad_released --root RAW_FOLDER --split-file LISTS"),
        ("mvsa", "mla prepare mvsa --recipe mvsa --root RAW_FOLDER --set features.text.vocabulary=VOCAB_TXT"),
    ],
)
def test_the_command_names_all_that_the_store_depends_on(name: str, command: str) -> None:
    assert prepare_command(load_recipe(name), Path("data")) == command
    assert prepare_command(load_recipe(name), Path("d")) == f"{command} --data-dir d"
    own = prepare_command(load_recipe(name), Path("data"), Path("runs/r/recipe.yaml"))
    assert own.startswith(f"mla prepare {command.split()[2]} --recipe runs/r/recipe.yaml")
    assert own.count("--recipe") == 1


# ---------------------------------------------------------------- train


@pytest.mark.parametrize("found", [None, "cuda"])
@pytest.mark.parametrize("name", ["cremad", "cremad_small", "kinetics_sounds", "kinetics_sounds_small"])
def test_the_store_decides_what_is_trained(name: str, found: str | None, machine: Any, tmp_path: Path) -> None:
    machine(found)
    store_of(name, tmp_path)
    recipe, why = choose_recipe(None, tmp_path)
    assert recipe.name == name
    assert why.startswith(f"recipe {name} (the data prepared last, {tmp_path / recipe.store}): data {recipe.store}, ")
    assert ("there is no accelerator here" in why) == (found is None)


def test_a_large_recipe_on_a_cpu_says_how_to_get_the_small_one(machine: Any, tmp_path: Path) -> None:
    machine(None)
    store_of("cremad", tmp_path)
    _, note, instead = choose_recipe(None, tmp_path)[1].splitlines()
    assert note == "there is no accelerator here, which `cremad` is meant for"
    assert instead == (
        f"for this machine: `mla prepare cremad --recipe cremad_small --root RAW_FOLDER --data-dir {tmp_path}`, "
        "then `mla train --recipe cremad_small`; `mla recipes show cremad --cost` measures a step"
    )


@pytest.mark.slow
def test_what_an_epoch_means_on_a_cpu(tmp_path: Path) -> None:
    store_of("cremad", tmp_path)
    flops = (8.433 + 31.936) * 1000 / 1000  # TFLOP: what `mla recipes show cremad --cost` counts for a sample
    found = epoch_on_cpu(load_recipe("cremad"), Store.open(tmp_path / "cremad"))
    assert found.startswith(f": an epoch over all 1000 samples is {flops:.0f} TFLOP, at least ")
    assert found.endswith(" GFLOP/s that this CPU reaches in a product of matrices")
    assert epoch_on_cpu(load_recipe("cremad", ["encoders.audio.name=m3ae"]), Store.open(tmp_path / "cremad")) == ""


def test_a_store_both_recipes_fit_goes_by_the_machine(machine: Any, tmp_path: Path) -> None:
    sizes = ("features.audio.mels=24", "features.audio.frames=48", "features.visual.size=16")
    store_of("cremad", tmp_path, *sizes)
    for found, name in ((None, "cremad_small"), ("cuda", "cremad")):
        machine(found)
        assert choose_recipe(None, tmp_path, sizes)[0].name == name
    # a key that only one of the two encoders has decides as well
    assert choose_recipe(None, tmp_path, [*sizes, "encoders.audio.channels=4"])[0].name == "cremad_small"


def test_a_store_that_no_recipe_fits_names_the_difference(machine: Any, tmp_path: Path) -> None:
    machine(None)
    store_of("cremad", tmp_path, "features.visual.size=100")
    assert choose_recipe(None, tmp_path)[0].name == "cremad_small"  # whose training says what differs
    with pytest.raises(MlaError, match=r"unknown key `encoders\.audio\.channel`"):
        choose_recipe(None, tmp_path, ["encoders.audio.channel=4"])


def test_a_store_of_its_own_name_keeps_its_recipe(machine: Any, tmp_path: Path) -> None:
    machine(None)
    store_of("cremad_released", tmp_path)
    recipe, why = choose_recipe(None, tmp_path)
    assert (recipe.name, recipe.store) == ("cremad_released", "cremad_released")
    assert "which `cremad_released` is meant for" in why


def test_a_store_named_by_the_user_is_the_one_trained_on(machine: Any, tmp_path: Path) -> None:
    machine(None)
    store_of("cremad_small", tmp_path, "dataset.store=mine")
    recipe, why = choose_recipe(None, tmp_path)
    assert (recipe.name, recipe.store) == ("cremad_small", "mine")
    assert f"(the data prepared last, {tmp_path / 'mine'}): data mine, " in why
    assert choose_recipe(None, tmp_path, ["dataset.store=other"])[0].store == "other"


def test_the_order_of_the_two(machine: Any) -> None:
    machine(None)
    assert own_recipes("mvsa") == ["mvsa_small", "mvsa"]
    machine("mps")
    assert own_recipes("mvsa") == ["mvsa", "mvsa_small"]
    assert own_recipes("emoji") == ["emoji"]
    assert own_recipes("table") == []


def test_the_commands_say_so(machine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    machine("cuda")
    output = mla("prepare", "mvsa", "--root", ".")
    assert output.code == 1
    assert "`features.text`: `tokens: wordpiece` needs a vocabulary" in output.stderr
    machine(None)
    output = mla("prepare", "cremad", "--root", ".")
    assert output.code == 1
    assert output.stderr.startswith("recipe cremad_small: there is no accelerator here; the other one: --recipe cremad")
    assert "recipe" not in mla("prepare", "cremad", "--root", ".", "--quiet").stderr
