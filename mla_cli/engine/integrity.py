"""What has changed between training and now: packages, the prepared data, their classes, the recipe. No torch."""

from pathlib import Path

from mla_cli.data.store import Store
from mla_cli.engine.packages import versions
from mla_cli.engine.run import Run
from mla_cli.errors import MlaError
from mla_cli.recipe import load_recipe
from mla_cli.schema import Recipe


def changed_since(run: Run, data_dir: Path) -> list[str]:
    """One sentence for everything that is not as it was when a run was trained: packages, prepared data, classes.

    Stored predictions are what they were; what is computed from now on is not. Data that are not there say nothing.
    """
    return [*changed_packages(run), *changed_data(run, data_dir)]


def changed_packages(run: Run) -> list[str]:
    """A sentence with every package that has another version now; none where all are the same."""
    then = run.info().get("versions", {})
    if not isinstance(then, dict):
        return []
    now = versions(tuple(name for name in then if name != "python"))
    changed = [f"{name} {then[name]} -> {now[name]}" for name in then if then[name] != now[name]]
    return [f"packages have changed since `{run.path}` was trained: {', '.join(changed)}"] if changed else []


def changed_data(run: Run, data_dir: Path) -> list[str]:
    """Sentences on the prepared set of a run, where it is not what the run was trained on."""
    info = run.info()
    trained, name = info.get("store_fingerprint"), run.recipe().store
    places = [data_dir / name, Path(str(info.get("data_dir", data_dir))) / name]
    path = next((place for place in places if (place / "manifest.json").is_file()), None)
    if path is None or trained is None:
        return []
    try:
        store = Store.open(path)
    except MlaError as error:
        return [error.message]
    if store.fingerprint == trained:
        return []
    found = [
        f"`{path}` is not what `{run.path}` was trained on (fingerprint {store.fingerprint[:8]}, then {trained[:8]}): "
        "the run's numbers are of the data as they were"
    ]
    return found + changed_classes(info.get("classes"), store)


def changed_classes(then: list[str] | None, store: Store) -> list[str]:
    """A sentence where a store's class list is not that of a run, with the first class that differs."""
    if not isinstance(then, list) or then == store.classes:
        return []
    pairs = zip([*then, *[""] * len(store.classes)], [*store.classes, *[""] * len(then)], strict=False)
    number, old, new = next((i, a, b) for i, (a, b) in enumerate(pairs) if a != b)
    return [
        f"the classes of `{store.path}` have changed: class {number} is `{new or 'not there'}`, "
        f"was `{old or 'not there'}` ({len(store.classes)} classes, then {len(then)})"
    ]


def resuming_notes(run: Run, recipe: Recipe, fingerprint: str) -> list[str]:
    """What whoever resumes has to know: other packages than those it began with, or that this is another run than the
    one that was begun, as its data have changed.

    recipe: complete; fingerprint: of the run's data now.
    """
    if run.state != "absent":
        return [f"{text}; the bytes may differ from those of one go" for text in changed_packages(run)]
    notes = []
    wanted = recipe.model_dump()
    for path in sorted(run.path.parent.glob(f"{run.name.rpartition('-')[0]}-*/run.json")):
        other = Run(path.parent)
        try:
            info = other.info()
            same = load_recipe(str(other.recipe_file)).model_dump() == wanted
        except MlaError:  # damaged: it will say so itself
            continue
        if not same or info.get("state") not in ("running", "failed"):
            continue
        if info.get("data_fingerprint") != fingerprint:
            why = "was begun on other data (the prepared data, split lists or weights have changed since)"
        else:
            why = "was begun with another recipe (its `recipe.yaml` was edited since)"
        notes.append(f"`{other.path}` {why}: starting a new run")
    return notes
