"""Recipes: load YAML, merge overrides, validate as a whole, hash, dump.

Order, weakest first: the defaults of `schema.py`, the YAML file, `--set key=value`, named flags.
"""

import contextlib
import copy
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mla_cli import registry
from mla_cli.bounded_yaml import MAX_BYTES, MAX_DEPTH, parse_yaml
from mla_cli.errors import MlaError, shortened, shown
from mla_cli.explain import explain
from mla_cli.files import read_at_most
from mla_cli.schema import EncoderSection, Recipe

# What a run's bytes depend on only through the machine (threads), or not at all, stays out of its hash.
NOT_HASHED = (("name",), ("train", "threads"), ("train", "checkpoint_every"))
# Of a folder: no path, nothing that a shell takes for an option or a spreadsheet for a formula.
FOLDER_NAME = re.compile(r"[^-=+@.~/\\\s][^/\\]*")
LONGEST_NAME = 120  # bytes; file systems take 255, and a run's folder adds method, seed, fold and hash
EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+", re.ASCII)


def find_recipe(source: str) -> Path:
    """A recipe's file from its name or path."""
    path = Path(source)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise MlaError(f"no recipe file `{source}`", "`mla recipes` lists the shipped ones")
        return path
    shipped = registry.recipe_paths()
    if source not in shipped:
        hint = registry.did_you_mean(source, list(shipped), "`mla recipes` lists them; a file must end in .yaml")
        raise MlaError(f"no recipe named `{source}`", hint)
    return shipped[source]


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping from a file. Raises MlaError naming the file and line."""
    try:
        content = parse_yaml(read_at_most(path, MAX_BYTES, "recipe").decode("utf-8"))
    except UnicodeDecodeError as error:
        raise MlaError(f"{path}: not UTF-8 text (byte {error.start})", "save the recipe as UTF-8") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-13-01
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise MlaError(f"{where}: not valid YAML: {problem}", "mend that line; recipes are plain YAML") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise MlaError(f"{path}: a recipe is a mapping, got {type(content).__name__}", "start with `dataset:`")
    return content


def parse_override(text: str) -> tuple[list[str], Any]:
    """`train.lr=1e-3` as (["train", "lr"], 0.001). Here, unlike in YAML, 1e-3 is a number."""
    key, equals, value = text.partition("=")
    keys = key.strip().split(".")
    if not equals or not key.strip() or len(keys) > MAX_DEPTH:
        raise MlaError(f"`{shortened(text)}` is not `key=value`", "write for example `--set train.epochs=5`")
    return keys, parse_value(value)


def parse_value(text: str) -> Any:
    """A value of the command line, read as YAML, numbers such as 1e-3 as numbers."""
    try:
        value = parse_yaml(text)
    except (yaml.YAMLError, ValueError) as error:
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        hint = "quote it, or write a number, a word or [a, list]"
        raise MlaError(f"`{shortened(text)}` is not a YAML value: {problem}", hint) from error
    # YAML 1.1 takes 1e-3 for text; quoted text stays text
    return float(text) if isinstance(value, str) and EXPONENT.fullmatch(text.strip()) else value


def merge(content: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    """Set a dotted key in nested mappings, in place."""
    node = content
    for key in keys[:-1]:
        child = node.get(key)
        if not isinstance(child, dict):
            child = node[key] = {}
        node = child
    node[keys[-1]] = value


def load_recipe(
    source: str | None = None,
    overrides: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    base: Mapping[str, Any] | None = None,
) -> Recipe:
    """Load, merge and validate. flags: dotted key -> value, the strongest; None values are not given.

    base: the content to start from in place of a file. Raises one MlaError that lists all problems.
    """
    if source is None:
        content, where = json.loads(json.dumps(base or {})), "recipe"
    else:
        path = find_recipe(source)
        content, where = read_yaml(path), str(path)
        content.setdefault("name", path.stem)
    if overrides:
        where += " with --set"
    for keys, value in map(parse_override, overrides):
        merge(content, keys, value)
    for dotted, value in (flags or {}).items():
        if value is not None:
            merge(content, dotted.split("."), value)
    return validate(content, where)


def validate(content: Mapping[str, Any], where: str) -> Recipe:
    """A checked Recipe, or one MlaError with every problem and its hint."""
    problems: list[tuple[str, str]] = []
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        problems = [explain(item) for item in error.errors()]
        with contextlib.suppress(ValidationError):
            problems += check_plugins(Recipe.model_validate(without(content, [e["loc"] for e in error.errors()])))
    else:
        problems = check_plugins(recipe) + check_names(recipe)
    if problems:
        messages, hints = zip(*problems, strict=True)
        message = "; ".join(dict.fromkeys(messages))
        raise MlaError(f"{where}: {message}", "; ".join(dict.fromkeys(h for h in hints if h)))
    return recipe


def without(content: Mapping[str, Any], places: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """A copy without what stands at these places, so that the rest can be checked too."""
    left = copy.deepcopy(dict(content))
    for place in places:
        node, parent, last = left, None, None
        for part in place:
            if isinstance(node, dict) and part in node:
                node, parent, last = node[part], node, part
        if parent is not None:
            del parent[last]
    return left


def check_plugins(recipe: Recipe) -> list[tuple[str, str]]:
    """Problems of encoder and method names and of their own keys."""
    problems = []
    for modality, encoder in recipe.encoders.items():
        prefix = f"encoders.{modality}."
        known = registry.names("encoders")
        if encoder.name not in known:
            hint = registry.did_you_mean(encoder.name, known)
            problems.append((f"`{prefix}name`: no encoder named `{encoder.name}`", hint))
        else:
            common = type(encoder).model_fields
            problems += registry.check_options("encoders", encoder.name, encoder.options(), prefix, common)
    methods = registry.names("methods")
    if recipe.method.name not in methods:
        hint = registry.did_you_mean(recipe.method.name, methods)
        problems.append((f"`method.name`: no method named `{recipe.method.name}`", hint))
    for key, value in recipe.method.options().items():
        if key not in methods:
            choices = [f"method.{name}" for name in (*type(recipe.method).model_fields, *methods)]
            problems.append((f"unknown key `method.{key}`", registry.did_you_mean(f"method.{key}", choices)))
        elif not isinstance(value, dict):
            problems.append((f"`method.{key}` holds the keys of method `{key}`, got {shown(value)}", "write a mapping"))
        else:
            problems += registry.check_options("methods", key, value, f"method.{key}.")
    return problems


def check_names(recipe: Recipe) -> list[tuple[str, str]]:
    """Problems of names that become folders, and of modalities that no feature is made of."""
    problems = []
    for key, name in (("name", recipe.name), ("dataset.store", recipe.store)):
        fits = len(name.encode("utf-8", "replace")) <= LONGEST_NAME
        if not (FOLDER_NAME.fullmatch(name) and name.isprintable() and fits):
            hint = (
                f"write a printable name of at most {LONGEST_NAME} bytes without slashes, that does not begin with one "
                "of `-=+@.~`"
            )
            problems.append((f"`{key}` names a folder, got {shown(name)}", hint))
    for section in ("encoders", "augment"):
        for modality in getattr(recipe, section):
            if recipe.features and modality not in recipe.features:
                hint = registry.did_you_mean(modality, list(recipe.features))
                problems.append((f"`{section}.{modality}`: no such modality under `features`", hint))
    return problems


# ---------------------------------------------------------------- writing


def dotted(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys; an empty mapping stays a value.

    >>> dotted({"train": {"lr": 0.1}, "augment": {}})
    {'train.lr': 0.1, 'augment': {}}
    """
    flat: dict[str, Any] = {}
    for key, value in content.items():
        whole = isinstance(value, Mapping) and value
        flat |= dotted(value, f"{prefix}{key}.") if whole else {f"{prefix}{key}": value}
    return flat


def dump_yaml(recipe: Recipe) -> str:
    """The complete recipe as YAML; loading it gives an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(), sort_keys=False, allow_unicode=True, width=100)


def recipe_hash(recipe: Recipe, fingerprint: str) -> str:
    """Hex digest of everything that a run's numbers depend on: the recipe and the data's fingerprint."""
    content = recipe.model_dump()
    for *sections, key in NOT_HASHED:
        node = content
        for section in sections:
            node = node[section]
        del node[key]
    text = json.dumps([content, fingerprint], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def default_encoder(kind: str) -> EncoderSection:
    """The encoder for a modality of a feature kind that a recipe says nothing about."""
    name = {"text": "ngram_bag", "vector": "mlp"}.get(kind, "convnet")
    return EncoderSection.model_validate({"name": name})
