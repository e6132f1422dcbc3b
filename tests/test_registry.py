import ast
import inspect
import subprocess
import sys

import pytest

from mla_cli import registry
from mla_cli.errors import MlaError

FOLDERS = ("datasets", "encoders", "methods")
PLUGINS = [(folder, name) for folder in ("encoders", "methods") for name in registry.names(folder)]


def test_the_folder_is_the_registry() -> None:
    for folder in FOLDERS:
        found = registry.names(folder)
        assert found == sorted(found)
        assert {path.stem for path in (registry.PACKAGE / folder).glob("[!_]*.py")} == set(found)
    assert {"emoji", "digits", "mfeat"} <= set(registry.names("datasets"))
    assert {"mlp", "convnet"} <= set(registry.names("encoders"))
    assert {"mla", "late", "concat", "unimodal"} <= set(registry.names("methods"))


@pytest.mark.parametrize(
    ("word", "choice"),
    [("cremadd", "cremad"), ("Emoji", "emoji"), ("mfaet", "mfeat"), ("zzzzzz", None), ("", None)],
)
def test_nearest(word: str, choice: str | None) -> None:
    assert registry.nearest(word, ["cremad", "emoji", "mfeat", "digits"]) == choice


def test_a_hint_names_the_nearest_or_all() -> None:
    assert registry.did_you_mean("emojy", ["emoji", "mfeat"]) == "did you mean `emoji`?"
    assert registry.did_you_mean("zzzzzz", ["emoji", "mfeat"]) == "choose one of `emoji`, `mfeat`"
    assert registry.did_you_mean("zzzzzz", ["emoji"], "look elsewhere") == "look elsewhere"


@pytest.mark.parametrize(
    ("folder", "name", "message", "hint"),
    [
        ("datasets", "emojy", "no dataset named `emojy`", "did you mean `emoji`?"),
        ("encoders", "convnt", "no encoder named `convnt`", "did you mean `convnet`?"),
        ("methods", "unimodel", "no method named `unimodel`", "did you mean `unimodal`?"),
        ("datasets", "_common", "no dataset named `_common`", None),
        ("datasets", "../errors", "no dataset named `../errors`", None),
    ],
)
def test_unknown_plugins(folder: str, name: str, message: str, hint: str | None) -> None:
    for call in (registry.load, registry.options):
        with pytest.raises(MlaError) as caught:
            call(folder, name)
        assert caught.value.message == message
        assert caught.value.hint
        assert hint in (None, caught.value.hint)


@pytest.mark.parametrize(("folder", "name"), PLUGINS)
def test_options_read_from_the_source_are_those_of_the_function(folder: str, name: str) -> None:
    module = registry.load(folder, name)
    function = module.build if folder == "encoders" else module.Method.__init__
    keywords = {
        key: parameter
        for key, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    read = registry.options(folder, name)
    assert list(read) == list(keywords)
    for key, (annotation, default) in read.items():
        real = keywords[key]
        assert real.default is not inspect.Parameter.empty, f"{name}: `{key}` has no default, so a recipe must name it"
        assert default == real.default
        assert type(default) is type(real.default)
        assert annotation, f"{name}: `{key}` has no type to check a recipe by"
        assert ast.dump(ast.parse(annotation)) == ast.dump(ast.parse(inspect.formatannotation(real.annotation)))
        # the default itself must pass the check
        if key != "token_count":
            assert registry.check_options(folder, name, {key: default}, "") == []


def test_some_plugin_has_options() -> None:
    assert sum(len(registry.options(folder, name)) for folder, name in PLUGINS) >= 5


def test_every_plugin_has_the_functions_that_the_engine_calls() -> None:
    for name in registry.names("encoders"):
        first_two = list(inspect.signature(registry.load("encoders", name).build).parameters)[:2]
        assert first_two == ["input_shape", "width"], name
    for name in registry.names("methods"):
        method = registry.load("methods", name).Method
        assert next(iter(inspect.signature(method).parameters)) == "context", name
        assert callable(method.step), name
    for name in registry.names("datasets"):
        module = registry.load("datasets", name)
        assert module.CITATION.strip(), name
        assert module.LICENSE.strip(), name
        assert list(inspect.signature(module.split).parameters) == ["rows", "protocol", "seed", "fold"], name


@pytest.fixture
def own_plugin(tmp_path, monkeypatch):
    """An encoder with one key of each type, in a package of its own."""
    (tmp_path / "encoders").mkdir()
    source = (
        "def build(input_shape, width, *, depth: int = 2, rate: float = 0.5, pool: str = 'mean', bias: bool = True,\n"
        "          weights: str | None = None, token_count: int = 7, low: float = -1.5): ..."
    )
    (tmp_path / "encoders" / "own_test_plugin.py").write_text(source)
    monkeypatch.setattr(registry, "PACKAGE", tmp_path)
    registry.options.cache_clear()
    yield "own_test_plugin"
    registry.options.cache_clear()


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"depth": 3, "rate": 1, "pool": "max", "bias": False, "weights": None, "low": -2.5}, None),
        ({"weights": "file"}, None),
        ({"depth": 3.0}, ("`e.depth` must be int, got 3.0", "the default is `2`")),
        ({"depth": True}, ("`e.depth` must be int, got True", "the default is `2`")),
        ({"rate": False}, ("`e.rate` must be float, got False", "the default is `0.5`")),
        ({"bias": 1}, ("`e.bias` must be bool, got 1", "the default is `True`")),
        ({"depth": None}, ("`e.depth` must be int, got None", "the default is `2`")),
        (
            {"rate": "1e-3"},
            ("`e.rate` must be float, got '1e-3'", "YAML reads `1e-3` as text; write `0.001` or `1.0e-3`"),
        ),
        ({"pool": 3}, ("`e.pool` must be str, got 3", "text that looks like a number needs quotes: `'3'`")),
        ({"dept": 3}, ("unknown key `e.dept`", "did you mean `e.depth`?")),
        ({"token_count": 9}, ("unknown key `e.token_count`", None)),
    ],
)
def test_checking_options(own_plugin: str, given: dict, problem: tuple[str, str | None] | None) -> None:
    found = registry.check_options("encoders", own_plugin, given, "e.")
    if problem is None:
        assert found == []
        return
    [(message, hint)] = found
    assert message == problem[0]
    assert hint
    assert problem[1] in (None, hint)


def test_a_plugin_without_keys_says_so() -> None:
    assert registry.options("methods", "late") == {}
    [(message, hint)] = registry.check_options("methods", "late", {"x": 1}, "method.late.")
    assert message == "unknown key `method.late.x`"
    assert "no keys of its own" in hint


def test_listing_and_checking_import_no_torch() -> None:
    code = """if True:
        import sys
        from mla_cli import recipe, registry
        for folder in ("encoders", "methods"):
            for name in registry.names(folder):
                registry.options(folder, name)
        recipe.load_recipe(None, ["encoders.visual.name=convnet"])
        heavy = {"torch", "torchaudio", "torchvision", "av", "pandas", "pyarrow"} & set(sys.modules)
        assert not heavy, heavy
    """
    subprocess.run([sys.executable, "-c", code], check=True)
