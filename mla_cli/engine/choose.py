"""Which recipe a command means when the user names none."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mla_cli import registry
from mla_cli.data import splits
from mla_cli.data.split_files import read_split_file
from mla_cli.data.store import Store
from mla_cli.engine.data import complete
from mla_cli.engine.run import latest
from mla_cli.errors import MlaError
from mla_cli.files import write_text
from mla_cli.recipe import dump_yaml, find_recipe, load_recipe
from mla_cli.schema import Recipe

DEFAULT = "emoji"


def choose_recipe(
    source: str | None,
    data_dir: Path,
    overrides: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    hgm: bool | None = None,
) -> tuple[Recipe, str]:
    """The recipe to run and one line that says why: the named one, that of the data prepared last, or `emoji`.

    hgm: the flag --hgm/--no-hgm; True keeps the recipe's variant, or takes `rls` where that is `off`.
    """
    if source is not None:
        load, why = _loader(source), f"recipe {source}"
    else:
        prepared = latest(data_dir)
        if prepared is None:
            load, why = _loader(DEFAULT), f"recipe {DEFAULT} (nothing is prepared under {data_dir}: the built-in data)"
        else:
            load, why = recipe_of_store(prepared, data_dir)
    recipe = load(overrides, dict(flags or {}))
    if hgm is not None:
        variant = recipe.method.hgm if recipe.method.hgm != "off" else "rls"
        recipe = load(overrides, {**(flags or {}), "method.hgm": variant if hgm else "off"})
    return recipe, f"{why}: {one_line(recipe)}"


def _loader(source: str):
    return lambda overrides, flags: load_recipe(source, overrides, flags)


def recipe_of_store(name: str, data_dir: Path) -> Any:
    """How to load the recipe of a prepared set: of its store's or its data set's name, or one made for it."""
    store = Store.open(data_dir / name)
    shipped = registry.recipe_paths()
    for candidate in (name, store.manifest["dataset"], f"{store.manifest['dataset']}_small"):
        if candidate in shipped:
            return _loader(candidate), f"recipe {candidate} (the data prepared last, {data_dir / name})"
    base = recipe_from_store(store, name).model_dump()
    kinds = ", ".join(f"{m}: {e['name']}" for m, e in base["encoders"].items())
    why = f"no recipe for {data_dir / name}: encoders chosen by kind ({kinds})"
    return lambda overrides, flags: load_recipe(None, overrides, flags, base), why


def recipe_from_store(store: Store, name: str) -> Recipe:
    """A recipe for a prepared set that has none: encoders by the kind of each modality, AdamW, 30 epochs."""
    content = {
        "name": name,
        "dataset": {"name": store.manifest["dataset"], "store": name},
        "train": {"optimizer": "adamw", "lr": 0.001, "weight_decay": 0.01, "schedule": "cosine", "epochs": 30},
    }
    return complete(load_recipe(None, base=content), store)


def recipe_for_dataset(
    name: str, source: str | None, overrides: Sequence[str], flags: Mapping[str, Any] | None = None
) -> Recipe:
    """The recipe whose feature specs `mla prepare NAME` follows. Raises MlaError for an unknown data set."""
    known = registry.names("datasets")
    if name not in known:
        if name in registry.recipe_paths():
            dataset = load_recipe(name).dataset.name
            raise MlaError(f"no dataset named `{name}`", f"it is a recipe: run `mla prepare {dataset} --recipe {name}`")
        raise MlaError(f"no dataset named `{name}`", registry.did_you_mean(name, known))
    shipped = registry.recipe_paths()
    candidates = [source] if source else [c for c in (name, f"{name}_small") if c in shipped]
    if candidates:
        recipe = load_recipe(candidates[0], overrides, flags)
        if recipe.dataset.name != name:
            raise MlaError(
                f"recipe `{candidates[0]}` is for dataset `{recipe.dataset.name}`, not `{name}`",
                f"run `mla prepare {recipe.dataset.name} --recipe {candidates[0]}`",
            )
    else:
        recipe = load_recipe(None, overrides, flags, base={"name": name, "dataset": {"name": name}})
    check_split(name, recipe)
    return recipe


def check_split(name: str, recipe: Recipe) -> None:
    """Raise MlaError for a protocol that the data set does not offer and for lists that cannot be read.

    Before hours of decoding; what lists and data have in common is seen afterwards.
    """
    protocols = registry.load("datasets", name).PROTOCOLS
    protocol, lists = recipe.dataset.protocol, recipe.dataset.split_file
    if protocol is not None and protocol not in protocols:
        raise MlaError(f"`{name}` has no protocol `{protocol}`", registry.did_you_mean(protocol, list(protocols)))
    if lists is not None:
        read_split_file(lists)
    elif protocol == "file":
        raise splits.unknown_protocol(protocol, protocols)


def class_names(name: str, classes: str) -> str | list[str]:
    """What `--classes` says: one of the data set's own lists, or the lines of a file. Raises MlaError otherwise."""
    module = registry.load("datasets", name)
    if not hasattr(module, "CLASS_LISTS"):
        raise MlaError(f"`--classes` does not go with `{name}`", "its classes are the same in all its releases")
    if classes in module.CLASS_LISTS:
        return classes
    path = Path(classes)
    if not path.is_file():
        known = ", ".join(f"`{known}`" for known in module.CLASS_LISTS)
        raise MlaError(f"no class list `{classes}`", f"choose one of {known}, or name a file with one class a line")
    try:
        names = [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError:
        names = []
    if not names:
        raise MlaError(f"no class in `{path}`", "write one class a line, UTF-8")
    return names


def scan_options(
    name: str, table: Path | None, modality: Sequence[str] | None, allow_outside: bool, classes: str | None = None
) -> dict[str, Any]:
    """The keywords of the data set's `scan` that the command line gives, and --allow-outside for any."""
    if classes is not None:
        return scan_options(name, table, modality, allow_outside) | {"classes": class_names(name, classes)}
    if name != "table":
        if table is not None or modality:
            raise MlaError(
                f"`--table` and `--modality` do not go with `{name}`", "run `mla prepare table --table FILE`"
            )
        return {"allow_outside": True} if allow_outside else {}
    if table is None:
        raise MlaError("`mla prepare table` needs a table", "add `--table my.csv`")
    kinds = {}
    for text in modality or ():
        column, equals, kind = text.partition("=")
        if not equals:
            raise MlaError(f"`--modality {text}` is not COLUMN=KIND", "write for example `--modality sound=audio`")
        kinds[column] = kind
    return {"table": table, "kinds": kinds, "allow_outside": allow_outside}


def copy_recipe(name: str, target: Path, data_dir: Path, force: bool) -> None:
    """Write a shipped recipe (as it is, with comments), or one made for a prepared set, to a file."""
    if target.exists() and not force:
        raise MlaError(f"`{target}` exists", "choose another name, or pass `--force`")
    if target.suffix not in (".yaml", ".yml"):
        raise MlaError(f"`{target}` does not end in .yaml", f"write for example `mla recipes copy {name} mine.yaml`")
    if name not in registry.recipe_paths() and (data_dir / name / "manifest.json").is_file():
        recipe = recipe_from_store(Store.open(data_dir / name), name)
        write_text(target, dump_yaml(recipe.model_copy(update={"name": target.stem})))
        return
    write_text(target, find_recipe(name).read_text("utf-8"))


def one_line(recipe: Recipe) -> str:
    """The merged recipe in one line."""
    train, method = recipe.train, recipe.method
    hgm = f" hgm={method.hgm}" if method.name == "mla" else ""
    return (
        f"data {recipe.store}, method {method.name}{hgm}, seed {recipe.seed}, {train.epochs} epochs, "
        f"{train.optimizer} lr {train.lr:g}, batch {train.batch_size}, select on {train.select_on}"
    )
