"""Which recipe a command means when the user names none."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mla_cli import registry
from mla_cli.data import splits
from mla_cli.data.hub import maker_digest
from mla_cli.data.normalise import fixed_normalisation
from mla_cli.data.split_files import MAX_LIST_BYTES, read_split_file
from mla_cli.data.store import Store
from mla_cli.data.text import token_count
from mla_cli.engine.data import complete, prepare_command
from mla_cli.engine.devices import accelerator
from mla_cli.engine.latest import latest
from mla_cli.errors import MlaError
from mla_cli.files import read_at_most
from mla_cli.recipe import load_recipe
from mla_cli.schema import Recipe
from mla_cli.specs import same_spec

DEFAULT = "emoji"
Loader = Callable[[Sequence[str], Mapping[str, Any]], Recipe]  # (overrides, flags) -> recipe


def choose_recipe(
    source: str | None,
    data_dir: Path,
    overrides: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    hgm: bool | None = None,
) -> tuple[Recipe, str]:
    """The recipe to run and what to tell about it: the named one, that of the data prepared last, or `emoji`.

    hgm: the flag --hgm/--no-hgm; True keeps the recipe's variant, or takes `rls` where that is `off`.
    """
    note = ""
    if source is not None:
        load, why = _loader(source), f"recipe {source}"
    else:
        prepared = latest(data_dir)
        if prepared is None:
            load, why = _loader(DEFAULT), f"recipe {DEFAULT} (nothing is prepared under {data_dir}: the built-in data)"
        else:
            load, why, note = recipe_of_store(prepared, data_dir, overrides, flags)
    recipe = load(overrides, dict(flags or {}))
    if hgm is not None:
        variant = recipe.method.hgm if recipe.method.hgm != "off" else "rls"
        recipe = load(overrides, {**(flags or {}), "method.hgm": variant if hgm else "off"})
    return recipe, "\n".join(filter(None, (f"{why}: {one_line(recipe)}", note)))


def _loader(source: str) -> Loader:
    return lambda overrides, flags: load_recipe(source, overrides, flags)


def own_recipes(dataset: str) -> list[str]:
    """The shipped recipes NAME and NAME_small of a data set, the better one for this machine first.

    NAME has the paper's encoders and wants an accelerator. Where there are not both, the machine is not looked at.
    """
    shipped = registry.recipe_paths()
    found = [name for name in (dataset, small(dataset)) if name in shipped]
    return found[::-1] if len(found) == 2 and accelerator() is None else found


def small(dataset: str) -> str:
    """The recipe of a data set that a laptop can train."""
    return f"{dataset}_small"


def fits(name: str, store: Store, overrides: Sequence[str], flags: Mapping[str, Any] | None) -> bool:
    """Whether a shipped recipe, so changed, takes the features that a store holds."""
    try:
        recipe = load_recipe(name, overrides, flags)
    except MlaError:  # a key that only the other recipe's encoders have
        return False
    return recipe.dataset.name == store.manifest["dataset"] and all(
        m in store.modalities and same_spec(spec, store.spec(m)) for m, spec in recipe.features.items()
    )


def recipe_of_store(
    name: str, data_dir: Path, overrides: Sequence[str] = (), flags: Mapping[str, Any] | None = None
) -> tuple[Loader, str, str]:
    """How to load the recipe of a prepared set, why that one, and what to tell beside it.

    Of the recipes of the store's and the data set's name the first that takes the stored features; or one made for it.
    """
    store = Store.open(data_dir / name)
    dataset, shipped = store.manifest["dataset"], registry.recipe_paths()
    named = [name] if name in shipped and name != dataset else []
    candidates = list(dict.fromkeys([*named, *own_recipes(dataset)]))
    if not candidates:
        base = recipe_from_store(store, name).model_dump()
        kinds = ", ".join(f"{m}: {e['name']}" for m, e in base["encoders"].items())
        why = f"no recipe for {data_dir / name}: encoders chosen by kind ({kinds})"
        return lambda overrides, flags: load_recipe(None, overrides, flags, base), why, ""
    fitting = [candidate for candidate in candidates if fits(candidate, store, overrides, flags)]
    chosen = (fitting or candidates)[0]  # where none fits, training says what differs
    note = ""
    if fitting and small(dataset) in shipped and accelerator() is None:
        note = "there is no accelerator here"
        if chosen != small(dataset):
            recipe = load_recipe(chosen, overrides, flags)
            note += f", which `{chosen}` is meant for{epoch_on_cpu(recipe, store)}\n{instead(recipe, data_dir)}"
        elif dataset in shipped:
            note += f": `{chosen}`, not `{dataset}`, which has the paper's encoders"
    why = f"recipe {chosen} (the data prepared last, {data_dir / name})"
    if load_recipe(chosen).store == name:
        return _loader(chosen), why, note
    # the store has a name that the recipe does not know: first of the overrides, so that the user's own win
    return lambda overrides, flags: load_recipe(chosen, [f"dataset.store={name}", *overrides], flags), why, note


def epoch_on_cpu(recipe: Recipe, store: Store) -> str:
    """What an epoch over all prepared samples takes at the least; nothing where it cannot be reckoned."""
    from mla_cli.engine.cost import on_paper  # imports torch, as training will
    from mla_cli.engine.measure import matrix_speed

    try:
        paper = on_paper(recipe, store)
    except MlaError:  # training finds it too, and tells
        return ""
    counts = store.manifest["counts"]
    work = sum(part.step_flops * counts.get(part.name, 0) for part in paper.encoders)
    speed = matrix_speed()
    return (
        f": an epoch over all {counts['samples']} samples is {work / 1e12:,.0f} TFLOP, at least {hours(work / speed)} "
        f"at the {speed / 1e9:,.0f} GFLOP/s that this CPU reaches in a product of matrices"
    )


def hours(seconds: float) -> str:
    """
    >>> hours(5), hours(5400), hours(9e6)
    ('5.0 seconds', '1.5 hours', '2,500.0 hours')
    """
    return f"{seconds:,.1f} seconds" if seconds < 3600 else f"{seconds / 3600:,.1f} hours"


def instead(recipe: Recipe, data_dir: Path) -> str:
    """How to come to the small recipe."""
    name = small(recipe.dataset.name)
    return (
        f"for this machine: `{prepare_command(load_recipe(name), data_dir)}`, then `mla train --recipe {name}`; "
        f"`mla recipes show {recipe.name} --cost` measures a step"
    )


def recipe_from_store(store: Store, name: str) -> Recipe:
    """A recipe for a prepared set that has none: encoders by the kind of each modality, AdamW, 30 epochs."""
    content = {
        "name": name,
        "dataset": {"name": store.manifest["dataset"], "store": name},
        "train": {"optimizer": "adamw", "lr": 0.001, "weight_decay": 0.01, "schedule": "cosine", "epochs": 30},
    }
    return complete(load_recipe(None, base=content), store)


def recipe_for_dataset(
    name: str,
    source: str | None,
    overrides: Sequence[str],
    flags: Mapping[str, Any] | None = None,
    building: bool = True,
) -> tuple[Recipe, str]:
    """The recipe whose feature specs `mla prepare NAME` follows, and what to tell about the choice ("": nothing).

    building: texts will be cut into tokens, so the vocabulary must be there. Raises MlaError for an unknown data set,
    and for whatever can be known to fail before hours of decoding.
    """
    known = registry.names("datasets")
    if name not in known:
        if name in registry.recipe_paths():
            dataset = load_recipe(name).dataset.name
            raise MlaError(f"no dataset named `{name}`", f"it is a recipe: run `mla prepare {dataset} --recipe {name}`")
        raise MlaError(f"no dataset named `{name}`", registry.did_you_mean(name, known))
    candidates = [source] if source else own_recipes(name)
    why = ""
    if candidates:
        recipe = load_recipe(candidates[0], overrides, flags)
        if recipe.dataset.name != name:
            raise MlaError(
                f"recipe `{candidates[0]}` is for dataset `{recipe.dataset.name}`, not `{name}`",
                f"run `mla prepare {recipe.dataset.name} --recipe {candidates[0]}`",
            )
        if len(candidates) == 2:
            there = "no accelerator here" if candidates[0] == small(name) else f"an accelerator here, {accelerator()}"
            why = f"recipe {candidates[0]}: there is {there}; the other one: --recipe {candidates[1]}"
    else:
        recipe = load_recipe(None, overrides, flags, base={"name": name, "dataset": {"name": name}})
    check_split(name, recipe)
    check_features(recipe, building)
    return recipe, why


def check_features(recipe: Recipe, building: bool) -> None:
    """Raise MlaError for what a feature needs and is not there, and for a normalisation that does not fit it.

    Needed are a vocabulary, or the tokenizer or extractor of a model.
    """
    for m, spec in recipe.features.items():
        if m in recipe.encoders:
            fixed_normalisation(m, recipe.encoders[m], spec)
        if building:
            try:
                maker_digest(spec)
            except MlaError as error:
                raise error.of(m) from error
        if building and spec.kind == "text" and spec.tokens == "wordpiece":
            try:
                token_count(spec)
            except MlaError as error:
                raise MlaError(
                    f"`features.{m}`: {error.message}",
                    f"add `--set features.{m}.vocabulary=FILE`, with the `vocab.txt` of bert-base-uncased or a folder "
                    "that holds one; nothing is downloaded",
                ) from error


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
        lines = read_at_most(path, MAX_LIST_BYTES, "list of classes").decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        lines = []
    names = [line.strip() for line in lines if line.strip()]
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


def one_line(recipe: Recipe) -> str:
    """The merged recipe in one line."""
    train, method = recipe.train, recipe.method
    hgm = f" hgm={method.hgm}" if method.name == "mla" else ""
    return (
        f"data {recipe.store}, method {method.name}{hgm}, seed {recipe.seed}, {train.epochs} epochs, "
        f"{train.optimizer} lr {train.lr:g}, batch {train.batch_size}, select on {train.select_on}"
    )
