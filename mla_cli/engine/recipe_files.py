"""Recipes as text: the shipped files with their comments, or a recipe made for a prepared set."""

from collections.abc import Sequence
from pathlib import Path

from mla_cli import registry
from mla_cli.data.store import Store
from mla_cli.engine.choose import recipe_from_store
from mla_cli.errors import MlaError
from mla_cli.files import json_text, write_text
from mla_cli.recipe import dump_yaml, find_recipe, load_recipe
from mla_cli.schema import Recipe


def made_for(name: str, data_dir: Path) -> Recipe | None:
    """The recipe made for a prepared set that no shipped recipe is named after; None where there is no such set."""
    if name in registry.recipe_paths() or not (data_dir / name / "manifest.json").is_file():
        return None
    return recipe_from_store(Store.open(data_dir / name), name)


def named_recipe(name: str, data_dir: Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe by name or file, or that of a prepared set, with its overrides."""
    made = made_for(name, data_dir)
    return load_recipe(name, overrides) if made is None else load_recipe(None, overrides, base=made.model_dump())


def recipe_text(name: str, data_dir: Path, overrides: Sequence[str] = (), as_json: bool = False) -> str:
    """A recipe's file as it is; with overrides, for a prepared set, or as JSON: the complete recipe."""
    if as_json:
        return json_text(named_recipe(name, data_dir, overrides).model_dump())
    if overrides or made_for(name, data_dir) is not None:
        return dump_yaml(named_recipe(name, data_dir, overrides))
    load_recipe(name)  # a file that is no recipe is told, not shown
    return find_recipe(name).read_text("utf-8")


def copy_recipe(name: str, target: Path, data_dir: Path, force: bool) -> None:
    """Write a shipped recipe (as it is, with comments), or one made for a prepared set, to a file."""
    if target.exists() and not force:
        raise MlaError(f"`{target}` exists", "choose another name, or pass `--force`")
    if target.suffix not in (".yaml", ".yml"):
        raise MlaError(f"`{target}` does not end in .yaml", f"write for example `mla recipes copy {name} mine.yaml`")
    made = made_for(name, data_dir)
    if made is not None:
        write_text(target, dump_yaml(made.model_copy(update={"name": target.stem})))
        return
    write_text(target, find_recipe(name).read_text("utf-8"))
