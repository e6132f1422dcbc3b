"""Data sets, encoders, methods and recipes, found by file name: the folder is the registry.

Options of an encoder or method are the keyword-only arguments of its `build` function or `Method` class. They are read
from the source with `ast`, so that listing and checking them imports no torch.
"""

import ast
import difflib
import importlib
import math
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from mla_cli.errors import MlaError, shortened, shown

PACKAGE = Path(__file__).parent
KINDS = {"datasets": "dataset", "encoders": "encoder", "methods": "method"}
_TYPES: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}


def names(folder: str) -> list[str]:
    """Names of all plug-ins of a folder: `datasets`, `encoders` or `methods`."""
    return sorted(path.stem for path in (PACKAGE / folder).glob("*.py") if not path.stem.startswith("_"))


def nearest(word: str, choices: list[str]) -> str | None:
    """The choice most like a mistyped word, or None."""
    found = difflib.get_close_matches(word.lower(), choices, n=1, cutoff=0.5)
    return found[0] if found else None


def did_you_mean(word: str, choices: list[str], otherwise: str = "") -> str:
    """A hint: the nearest choice, or what there is."""
    close = nearest(word, choices)
    if close is not None:
        return f"did you mean `{close}`?"
    return otherwise or "choose one of " + ", ".join(f"`{choice}`" for choice in choices)


def load(folder: str, name: str) -> ModuleType:
    """Import a plug-in by name, such as `load("datasets", "emoji")`."""
    if name not in names(folder):
        raise MlaError(f"no {KINDS[folder]} named `{name}`", did_you_mean(name, names(folder)))
    return importlib.import_module(f"mla_cli.{folder}.{name}")


@cache
def options(folder: str, name: str) -> dict[str, tuple[str, Any]]:
    """A plug-in's own recipe keys: name -> (type as written, default). Raises MlaError for an unknown plug-in."""
    if name not in names(folder):
        raise MlaError(f"no {KINDS[folder]} named `{name}`", did_you_mean(name, names(folder)))
    tree = ast.parse((PACKAGE / folder / f"{name}.py").read_text("utf-8"))
    wanted = "build" if folder == "encoders" else "__init__"
    body = tree.body
    if folder == "methods":
        body = next((n.body for n in body if isinstance(n, ast.ClassDef) and n.name == "Method"), [])
    for node in body:
        if isinstance(node, ast.FunctionDef) and node.name == wanted:
            pairs = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            return {
                arg.arg: (
                    ast.unparse(arg.annotation) if arg.annotation else "",
                    None if default is None else ast.literal_eval(default),
                )
                for arg, default in pairs
            }
    return {}


def summary(folder: str, name: str) -> str:
    """The first sentence of a plug-in's docstring, read without importing it."""
    text = ast.get_docstring(ast.parse((PACKAGE / folder / f"{name}.py").read_text("utf-8"))) or ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<!et al)\. ", paragraph)[0].rstrip(".") + "."


def check_options(
    folder: str, name: str, given: dict[str, Any], prefix: str, common: Iterable[str] = ()
) -> list[tuple[str, str]]:
    """Problems of a plug-in's own keys as (message, hint); none if all are known and of the right type.

    common: keys that all plug-ins of the folder have, to tell what a mistyped key was meant to be.
    """
    # token_count comes from the text features, never from a recipe
    known, problems = {key: kept for key, kept in options(folder, name).items() if key != "token_count"}, []
    for key, value in given.items():
        if key not in known:
            close = nearest(key, [*known, *common])
            listed = "its own keys: " + ", ".join(f"`{own}`" for own in known) if known else "it has no keys of its own"
            hint = f"did you mean `{prefix}{close}`?" if close else f"`{name}`: {listed}"
            problems.append((f"unknown key `{prefix}{key}`", hint))
            continue
        allowed = [part.strip() for part in known[key][0].split("|")]
        types = tuple(t for part in allowed for t in _TYPES.get(part, ()))
        # bool is an int in Python, never in a recipe
        fits = isinstance(value, types) and (not isinstance(value, bool) or "bool" in allowed)
        if types and not fits and not (value is None and "None" in allowed):
            hint = type_hint(value, known[key][0]) or f"the default is `{known[key][1]}`"
            problems.append((f"`{prefix}{key}` must be {known[key][0]}, got {shown(value)}", hint))
        elif isinstance(value, float) and not math.isfinite(value):
            problems.append(
                (f"`{prefix}{key}` must be a finite number, got {shown(value)}", f"the default is `{known[key][1]}`")
            )
    return problems


def type_hint(given: object, wanted: str) -> str:
    """How to write a number that arrived as text, or text that arrived as a number; empty where it is neither."""
    if "str" in wanted:
        return (
            ""
            if isinstance(given, bool | list | dict | None)
            else f"text that looks like a number needs quotes: `'{shortened(str(given))}'`"
        )
    try:
        number = float(given) if isinstance(given, str) else math.nan
    except ValueError:
        return ""
    if not isinstance(given, str) or not math.isfinite(number):
        return ""
    if "e" not in given.lower():
        return f"write it without quotes: `{given}`"
    mantissa, _, exponent = given.lower().partition("e")
    signed = exponent if exponent[0] in "+-" else f"+{exponent}"
    written = f"{mantissa if '.' in mantissa else mantissa + '.0'}e{signed}"
    return f"YAML reads `{given}` as text; write `{number}` or `{written}`"


def recipes_dir() -> Path:
    """The folder of shipped recipes: inside an installed package, beside the package in a checkout."""
    installed = PACKAGE / "recipes"
    return installed if installed.is_dir() else PACKAGE.parent / "recipes"


def recipe_paths() -> dict[str, Path]:
    """Recipe name -> file, for all shipped recipes."""
    return {path.stem: path for path in sorted(recipes_dir().rglob("*.yaml"))}
