"""The recipes of the five public data sets: small, the paper's, and as released; and what their headers say."""

import re
import shlex

import pytest
import typer

from mla_cli import registry
from mla_cli.cli import app
from mla_cli.core.fusion import released_weights
from mla_cli.recipe import load_recipe

PAPER = ("cremad", "food101", "iemocap", "kinetics_sounds", "mvsa")
ENCODERS = {
    "cremad": {"audio": "resnet18", "visual": "resnet18"},
    "kinetics_sounds": {"audio": "resnet18", "visual": "resnet18"},
    "food101": {"visual": "m3ae", "text": "m3ae"},
    "mvsa": {"visual": "m3ae", "text": "m3ae"},
    "iemocap": {"audio": "cav_mae", "visual": "m3ae", "text": "m3ae"},
}
PUBLISHED = {
    "epochs": 100,
    "batch_size": 64,
    "optimizer": "sgd",
    "lr": 0.001,
    "momentum": 0.9,
    "weight_decay": 0.0001,
    "schedule": "step",
    "step_epochs": 70,
    "step_factor": 0.1,
}


def header(name: str) -> str:
    """The comment lines at the top of a recipe's file."""
    lines = registry.recipe_paths()[name].read_text("utf-8").splitlines()
    first = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line.removeprefix("#") for line in lines[:first])


def commands(text: str) -> list[str]:
    """The `mla ...` commands of a header: on lines of their own, continued by deeper ones, or inside a line."""
    joined = re.sub(r"\n +--", " --", text)
    found = [re.split(r" && |`|, then |(?<=RAW)\.", part)[0] for part in re.split(r"(?=\bmla )", joined)[1:]]
    return [command.split("\n")[0].strip() for command in found]


@pytest.mark.parametrize("name", registry.recipe_paths())
def test_the_header_says_how_to_run_it(name: str) -> None:
    root = typer.main.get_command(app)
    shown = commands(header(name))
    assert any(command.startswith("mla train") for command in shown)
    for command in shown:
        _, first, *words = shlex.split(command)
        parser = root.commands[first]  # type: ignore[attr-defined]
        if words and words[0] in getattr(parser, "commands", {}):
            parser, words = parser.commands[words[0]], words[1:]
        parser.make_context(first, list(words))
        both = {words[0], f"{words[0]}_small"} <= set(registry.recipe_paths()) if first == "prepare" else False
        assert not both or "--recipe" in words, "which one is meant depends on the machine"
        if "--recipe" in words:
            named = words[words.index("--recipe") + 1]
            assert named == name
        overrides = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
        load_recipe(name, overrides)


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_recipe(name: str) -> None:
    recipe, module = load_recipe(name), registry.load("datasets", name)
    assert {m: e.name for m, e in recipe.encoders.items()} == ENCODERS[name]
    assert list(recipe.features) == list(ENCODERS[name]) == list(module.MODALITIES)
    assert recipe.dataset.protocol == next(iter(module.PROTOCOLS))
    assert recipe.store == name
    assert (recipe.method.name, recipe.method.hgm) == ("mla", "rls")
    assert recipe.fusion.rule is None  # entropy, the method's own
    assert recipe.train.select_on == "val"
    assert recipe.train.model_dump(include=set(PUBLISHED)) == PUBLISHED
    assert all(section.weights is None for section in recipe.encoders.values())
    assert all(getattr(spec, "vocabulary", None) is None for spec in recipe.features.values())
    assert f"{name}_small" in header(name)


@pytest.mark.parametrize("name", PAPER)
def test_the_released_recipe(name: str) -> None:
    recipe, sound = load_recipe(f"{name}_released"), load_recipe(name)
    assert {m: e.name for m, e in recipe.encoders.items()} == ENCODERS[name]
    assert (recipe.dataset.protocol, recipe.dataset.split_file) == ("file", None)
    assert recipe.store == f"{name}_released"  # the sound features stay
    assert recipe.method.hgm == "off"
    assert recipe.fusion.rule == "fixed"
    assert recipe.fusion.weights == released_weights(list(ENCODERS[name]))
    assert recipe.train.select_on == "test"
    assert recipe.train.model_dump(exclude={"select_on"}) == sound.train.model_dump(exclude={"select_on"})
    assert "For comparison with published numbers only" in header(f"{name}_released")
    for m, encoder in recipe.encoders.items():
        spec = recipe.features[m]
        wanted = {"image": "imagenet", "video": "imagenet", "text": "train"}
        wanted["fbank"] = "audioset" if encoder.name == "cav_mae" else "none"
        assert encoder.normalise == wanted[spec.kind]
        if encoder.name == "m3ae":
            assert encoder.options() == {"size": "base", "pool": "mean_all"}
        if spec.kind == "fbank":
            assert (spec.frames, spec.mels, spec.rate) == (1024, 128, 16000)
        if spec.kind == "video":
            assert (spec.fps, spec.frames, spec.size) == (1.0, 3, 224)


def test_each_public_set_has_its_three() -> None:
    shipped = registry.recipe_paths()
    for name in PAPER:
        assert {name, f"{name}_small", f"{name}_released"} <= set(shipped)
    public = [n for n in registry.names("datasets") if not getattr(registry.load("datasets", n), "BUILT_IN", False)]
    assert sorted(set(public) - {"table"}) == sorted(PAPER)
