import contextlib
import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from mla_cli import recipe, registry
from mla_cli.errors import MlaError
from mla_cli.recipe import dump_yaml, load_recipe, parse_override, recipe_hash, validate
from mla_cli.schema import AugmentSection, EncoderSection, Recipe


def refusal(content: str | bytes, folder: Path, *overrides: str) -> MlaError:
    """What a recipe file `mine.yaml` with this content is refused with."""
    file = folder / "mine.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(MlaError) as caught:
        load_recipe(str(file), overrides)
    caught.value.message = caught.value.message.removeprefix(f"{folder}/")
    return caught.value


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        ("train: {epocs: 3}", "mine.yaml: unknown key `train.epocs`", "did you mean `train.epochs`?"),
        (
            "train: {lr: 1e-3}",
            "mine.yaml: `train.lr` must be float, got '1e-3'",
            "YAML reads `1e-3` as text; write `0.001` or `1.0e-3`",
        ),
        (
            "method: {hgm: true}",
            "mine.yaml: `method.hgm`: `true` does not say which variant",
            "write `rls`, `released`, `released_add` or `off`",
        ),
        (
            "method: {hgm: rsl}",
            "mine.yaml: `method.hgm` must be one of off, rls, released, released_add, got 'rsl'",
            "did you mean `rls`?",
        ),
        (
            "train: {lr: 2.5E4}",
            "mine.yaml: `train.lr` must be float, got '2.5E4'",
            "YAML reads `2.5E4` as text; write `25000.0` or `2.5e+4`",
        ),
        ("train: {epochs: '3'}", "mine.yaml: `train.epochs` must be int, got '3'", "write it without quotes: `3`"),
        ("train: {epochs: true}", "mine.yaml: `train.epochs` must be int, got True", "the default is `30`"),
        ("train: {epochs: 0}", "mine.yaml: `train.epochs` must be greater than or equal to 1, got 0", None),
        ("name: 3", "mine.yaml: `name` must be string, got 3", "text that looks like a number needs quotes: `'3'`"),
        ("train:", "mine.yaml: `train` must be a mapping of keys, got None", None),
        ("1: 2", "mine.yaml: key `1` must be text, got 1", "put it in quotes"),
        (
            "name: a/b",
            "mine.yaml: `name` names a folder, got 'a/b'",
            "write a printable name of at most 120 bytes without slashes, that does not begin with one of `-=+@.~`",
        ),
        ("dataset: {store: ..}", "mine.yaml: `dataset.store` names a folder, got '..'", None),
        (
            "features: {visual: {kind: image, sise: 3}}",
            "mine.yaml: unknown key `features.visual.sise`",
            "did you mean `features.visual.size`?",
        ),
        (
            "features: {visual: {kind: imag}}",
            "mine.yaml: `features.visual.kind`: no feature kind `imag`",
            "did you mean `image`?",
        ),
        ("features: {visual: {size: 3}}", "mine.yaml: `features.visual.kind` is missing", None),
        ("encoders: {visual: {width: 3}}", "mine.yaml: `encoders.visual.name` is missing", None),
        (
            "encoders: {visual: {name: convnt}}",
            "mine.yaml: `encoders.visual.name`: no encoder named `convnt`",
            "did you mean `convnet`?",
        ),
        (
            "encoders: {visual: {name: convnet, chanels: 3}}",
            "mine.yaml: unknown key `encoders.visual.chanels`",
            "did you mean `encoders.visual.channels`?",
        ),
        (
            "encoders: {text: {name: ngram_bag, dropout: 1e-1}}",
            "mine.yaml: `encoders.text.dropout` must be float, got '1e-1'",
            "YAML reads `1e-1` as text; write `0.1` or `1.0e-1`",
        ),
        (
            "encoders: {text: {name: ngram_bag, token_count: 9}}",  # comes from the data
            "mine.yaml: unknown key `encoders.text.token_count`",
            None,
        ),
        (
            "features: {visual: {kind: image}}\naugment: {visaul: {flip: true}}",
            "mine.yaml: `augment.visaul`: no such modality under `features`",
            "did you mean `visual`?",
        ),
        ("method: {name: mlb}", "mine.yaml: `method.name`: no method named `mlb`", "did you mean `mla`?"),
        ("method: {hmg: rls}", "mine.yaml: unknown key `method.hmg`", "did you mean `method.hgm`?"),
        (
            "method: {unimodal: text}",
            "mine.yaml: `method.unimodal` holds the keys of method `unimodal`, got 'text'",
            "write a mapping",
        ),
        (
            "method: {unimodal: {modalty: text}}",
            "mine.yaml: unknown key `method.unimodal.modalty`",
            "did you mean `method.unimodal.modality`?",
        ),
        ("- dataset", "mine.yaml: a recipe is a mapping, got list", "start with `dataset:`"),
        (b"name: caf\xe9", "mine.yaml: not UTF-8 text (byte 9)", "save the recipe as UTF-8"),
        ("seed: 1\ntrain:\n  lr: 0.1\n  lr: 0.2", "mine.yaml:4: not valid YAML: key `lr` stands there twice", None),
        ("name: 2024-13-01", "mine.yaml: not valid YAML: month must be in 1..12", None),
        (
            "seed: 1\nname: x: y",
            "mine.yaml:2: not valid YAML: mapping values are not allowed here",
            "mend that line; recipes are plain YAML",
        ),
    ],
)
def test_what_is_wrong_and_what_to_do(content: str | bytes, message: str, hint: str | None, tmp_path: Path) -> None:
    error = refusal(content, tmp_path)
    assert error.message == message
    assert error.hint == hint if hint is not None else error.hint


def test_all_problems_at_once_each_with_its_hint(tmp_path: Path) -> None:
    error = refusal(
        "train: {epocs: 3, lr: 1e-3}\nmethod: {hgm: true, name: mlb}\nencoders: {visual: {name: convnt, width: x}}",
        tmp_path,
    )
    for part in (
        "unknown key `train.epocs`",
        "`train.lr` must be float",
        "`method.hgm`: `true` does not say",
        "no method named `mlb`",
        "`encoders.visual.width` must be int",
        "no encoder named `convnt`",
    ):
        assert error.message.count(part) == 1
    for part in ("`train.epochs`", "`1.0e-3`", "`released`", "`mla`", "`convnet`"):
        assert part in error.hint


def test_tags_are_refused_and_do_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "touched"
    error = refusal(f"name: !!python/object/apply:pathlib.Path.touch [!!python/name:x '{mark}']", tmp_path)
    assert error.message.startswith("mine.yaml:1: not valid YAML: could not determine a constructor for the tag")
    error = refusal(f"name: !!python/object/apply:os.system ['touch {mark}']", tmp_path)
    assert "python/object/apply:os.system" in error.message
    assert not mark.exists()


def test_a_ring_of_aliases_ends(tmp_path: Path) -> None:
    found = refusal("notes: &notes [*notes]", tmp_path).message
    assert "mine.yaml:1: not valid YAML: an alias stands inside of what it stands for" in found


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MlaError, match=r"^no recipe file `nowhere\.yaml`"):
        load_recipe("nowhere.yaml")
    with pytest.raises(MlaError, match=r"^no recipe named `qqqqqq`"):
        load_recipe("qqqqqq")
    folder = tmp_path / "folder.yaml"
    folder.mkdir()
    with pytest.raises(MlaError, match=r"^no recipe file"):
        load_recipe(str(folder))


def test_the_nearest_shipped_recipe_is_the_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "recipe_paths", lambda: {"emoji": tmp_path / "emoji.yaml"})
    with pytest.raises(MlaError) as caught:
        load_recipe("emojy")
    assert caught.value.hint == "did you mean `emoji`?"


def test_a_recipe_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("seed: 1")

    def denied(*_: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(MlaError, match=r"cannot read `.*mine\.yaml`: Permission denied"):
        load_recipe(str(file))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr", "`train.lr` is not `key=value`"),
        ("=3", "`=3` is not `key=value`"),
        ("train.lr=[", "`[` is not a YAML value: expected the node content, but found '<stream end>'"),
        ("name=2024-13-01", "`2024-13-01` is not a YAML value: month must be in 1..12"),
        ("train.epocs=3", "recipe with --set: unknown key `train.epocs`"),
        ("train.lr.x=3", "recipe with --set: `train.lr` must be float, got {'x': 3}"),
    ],
)
def test_overrides_that_are_refused(override: str, message: str) -> None:
    with pytest.raises(MlaError) as caught:
        load_recipe(None, [override])
    assert caught.value.message == message
    assert caught.value.hint


# ---------------------------------------------------------------- merging


def test_bare_off_is_a_variant_not_false(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("method: {hgm: off}")
    assert yaml.safe_load(file.read_text()) == {"method": {"hgm": False}}
    assert load_recipe(str(file)).method.hgm == "off"
    assert load_recipe(None, ["method.hgm=off"]).method.hgm == "off"
    assert load_recipe(None).method.hgm == "rls"


def test_default_then_yaml_then_set_then_flag(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("train: {lr: 0.2, epochs: 2, batch_size: 2}\nseed: 2")
    overrides = ["train.lr=0.3", "train.epochs=3", "train.lr=0.35"]
    merged = load_recipe(str(file), overrides, {"train.lr": 0.4, "seed": None})
    assert merged.train.momentum == 0.9  # default
    assert merged.train.batch_size == 2  # YAML
    assert merged.train.epochs == 3  # --set
    assert merged.train.lr == 0.4  # flag
    assert merged.seed == 2  # a flag that is None was not given
    assert load_recipe(str(file), overrides).train.lr == 0.35  # the last --set of a key counts
    assert merged.name == "mine"
    assert load_recipe(str(file), ["name=other"]).name == "other"


def test_a_base_is_not_changed_by_what_is_merged_into_it() -> None:
    base = {"train": {"lr": 0.2}}
    assert load_recipe(None, ["train.lr=0.5"], base=base).train.lr == 0.5
    assert base == {"train": {"lr": 0.2}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("train.lr=1e-3", 0.001),
        ("train.lr=1E2", 100.0),
        ("train.epochs=5", 5),
        ("method.hgm=off", False),
        ("dataset.modalities=[mor, fou]", ["mor", "fou"]),
        ("dataset.limit=null", None),
        ("dataset.split_file=a=b.csv", "a=b.csv"),
        ("name='7'", "7"),
        ("name='1e3'", "1e3"),
        ("name=nan", "nan"),
    ],
)
def test_override_values(text: str, value: object) -> None:
    keys, parsed = parse_override(text)
    assert keys == text.split("=")[0].split(".")
    assert parsed == value
    assert type(parsed) is type(value)


def test_set_reaches_into_a_section_left_empty(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("train:\n")
    assert load_recipe(str(file), ["train.epochs=4"]).train.epochs == 4


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(b"\xef\xbb\xbfseed: 7")
    assert load_recipe(str(file)).seed == 7


# ---------------------------------------------------------------- every key: round trip and hash

KINDS = ("image", "fbank", "log_stft", "video", "text", "vector")
WHOLE = {
    "features": {kind: {"kind": kind} for kind in KINDS},
    "encoders": {"image": {"name": "convnet", "weights": "file.pt"}},
    "augment": {"image": {}},
    "fusion": {"weights": {"image": 0.5}},
}


def leaves(model: BaseModel, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(keys, annotation) of every key of a recipe, through sections and mappings by modality."""
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from leaves(value, (*place, name))
        elif isinstance(value, dict) and any(isinstance(entry, BaseModel) for entry in value.values()):
            for key, entry in value.items():
                yield from leaves(entry, (*place, name, key))
        else:
            yield (*place, name), field.annotation


def words(annotation: Any) -> Iterator[str]:
    """All the words of the Literals inside an annotation."""
    for argument in get_args(annotation):
        yield from [argument] if isinstance(argument, str) else words(argument)


def changed(keys: tuple[str, ...], annotation: Any) -> Recipe | None:
    """The whole recipe with one key set to another value that is allowed; None if there is no other."""
    before = validate(WHOLE, "test").model_dump()
    others = [
        *words(annotation),
        "mlp",
        "late",
        "x",
        "0" * 64,
        True,
        False,
        1,
        2,
        3,
        64,
        8000,
        0.5,
        ["image"],
        [["image"]],
        {"image": 0.25},
    ]
    for value in others:
        content = load_recipe(None, base=WHOLE).model_dump()
        recipe.merge(content, keys, value)
        with contextlib.suppress(MlaError):
            found = validate(content, "test")
            if found.model_dump() != before:
                return found
    return None


KEYS = list(leaves(validate(WHOLE, "test")))


def test_the_walk_finds_every_section() -> None:
    found = {keys for keys, _ in KEYS}
    assert len(KEYS) > 80
    assert {keys[0] for keys in found} == set(Recipe.model_fields)
    assert {keys[2] for keys in found if keys[0] == "augment"} == set(AugmentSection.model_fields)
    assert {keys[2] for keys in found if keys[0] == "encoders"} == set(EncoderSection.model_fields)
    assert {keys[1] for keys in found if keys[0] == "features"} == set(KINDS)


@pytest.mark.parametrize(("keys", "annotation"), KEYS, ids=[".".join(keys) for keys, _ in KEYS])
def test_every_key_round_trips_and_is_hashed(keys: tuple[str, ...], annotation: Any, tmp_path: Path) -> None:
    other = changed(keys, annotation)
    if other is None:
        assert keys[-1] == "kind"  # a kind of feature is a whole section, not one key
        return
    file = tmp_path / "other.yaml"
    file.write_text(dump_yaml(other), "utf-8")
    assert load_recipe(str(file)) == other
    before = validate(WHOLE, "test")
    free = {("name",), ("train", "threads"), ("train", "checkpoint_every")}
    assert (recipe_hash(other, "data") == recipe_hash(before, "data")) == (keys in free)


def test_hash_depends_on_data_plugin_keys_and_kind_but_not_on_the_order_of_keys() -> None:
    assert recipe_hash(validate(WHOLE, "test"), "one") != recipe_hash(validate(WHOLE, "test"), "two")
    plain, wide, other_method, other_kind = (
        validate(content, "test")
        for content in (
            WHOLE,
            WHOLE | {"encoders": {"image": {"name": "convnet", "channels": 5}}},
            WHOLE | {"method": {"unimodal": {"modality": "image"}}},
            WHOLE | {"features": WHOLE["features"] | {"image": {"kind": "vector"}}},
        )
    )
    hashes = {recipe_hash(r, "data") for r in (plain, wide, other_method, other_kind)}
    assert len(hashes) == 4
    backwards = validate({k: WHOLE[k] for k in reversed(WHOLE)}, "test")
    assert recipe_hash(backwards, "data") == recipe_hash(plain, "data")


def test_hash_is_the_same_in_another_process() -> None:
    first = recipe_hash(validate({}, "test"), "data")
    code = "from mla_cli.recipe import *; print(recipe_hash(validate({}, 'test'), 'data'))"
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert again.stdout.strip() == first  # another process, another hash seed
    assert len(first) == 64


@pytest.mark.parametrize("text", ["1e-3", "1e3", "2.5e4", "-3E-2", ".5e1"])
def test_the_hint_for_a_number_read_as_text_is_read_as_a_number(text: str) -> None:
    assert isinstance(yaml.safe_load(text), str)
    hint = registry.type_hint(text, "float")
    written = hint.split("`")[3::2]
    assert [yaml.safe_load(number) for number in written] == [float(text)] * 2


def test_numbers_in_a_dump_are_numbers_again(tmp_path: Path) -> None:
    small = load_recipe(None, ["train.lr=1e-7", "train.weight_decay=0", "method.hgm=off", "name='1e3'"])
    file = tmp_path / "small.yaml"
    file.write_text(dump_yaml(small))
    assert load_recipe(str(file)) == small
    assert load_recipe(str(file)).train.lr == 1e-7


# ---------------------------------------------------------------- shipped recipes


def test_shipped_recipes_load() -> None:
    shipped = registry.recipe_paths()
    assert shipped, "no recipes found"
    assert len(shipped) == len(list(registry.recipes_dir().rglob("*.yaml"))), "two recipes have one name"
    for name, path in shipped.items():
        loaded = load_recipe(name)
        assert loaded.name == name
        assert loaded.dataset.name in registry.names("datasets"), path
        assert load_recipe(str(path)) == loaded
        assert path.read_text("utf-8").startswith("#"), f"{path} does not say how to run it"


def test_default_encoders_exist_for_every_feature_kind() -> None:
    for kind in KINDS:
        assert recipe.default_encoder(kind).name in registry.names("encoders")


def test_every_recipe_error_is_an_mla_error(tmp_path: Path) -> None:
    """Odd values at every top-level key: an explanation, never a traceback."""
    odd: list[object] = [None, 3, -1, "x", [], [1], {}, {"x": None}, {"x": {"y": 1}}, True, float("nan")]
    refused = []
    for key, value in itertools.product(Recipe.model_fields, odd):
        try:
            validate({key: value}, "test")
        except MlaError as error:
            refused.append(error)
    assert len(refused) > 80
    assert all(error.hint for error in refused)


# ---------------------------------------------------------------- checkpoints inside an epoch


@pytest.mark.parametrize(
    ("value", "rounds", "seconds"),
    [("500", 500, None), ("90s", None, 90), ("10min", None, 600), ("1.5h", None, 5400), ("2 min", None, 120)],
)
def test_checkpoints_come_after_rounds_or_a_time(value: str, rounds: int | None, seconds: float | None) -> None:
    train = load_recipe(None, [f"train.checkpoint_every={value}"]).train
    assert train.checkpoint_seconds == seconds
    assert train.checkpoint_every == (rounds or value)


@pytest.mark.parametrize("value", ["0", "-1", "2.5", "true", "0s", "10", "10m", "min", "[1]", "1e3s"])
def test_checkpoints_come_after_nothing_else(value: str) -> None:
    if value == "10":
        value = "'10'"  # a text without a unit
    with pytest.raises(MlaError, match=r"`train.checkpoint_every`: must be rounds or a time, got ") as caught:
        load_recipe(None, [f"train.checkpoint_every={value}"])
    assert "write 500, or with a unit 90s, 10min or 1.5h" in str(caught.value)
