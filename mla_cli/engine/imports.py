"""`mla import --layout mla-released`: a checkpoint of the paper's released code becomes a run that `mla eval` scores.

Nothing in a checkpoint is executed, and every name and shape is compared with the layout (`core/layouts.py`) before
anything is written. What a checkpoint does not say is labelled, never guessed: how its epoch was chosen, which samples
it was trained on, and the order of its classes (`engine/class_order.py`).
"""

import hashlib
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mla_cli import registry
from mla_cli.core.layout_files import Found, listed, read_layout
from mla_cli.core.layouts import UNUSED, Layout
from mla_cli.data.leakage import leaks_into_test
from mla_cli.data.split_files import WARNING
from mla_cli.engine.class_order import class_order, order_note, other_order
from mla_cli.engine.data import Data, complete, load_data, open_store, prepare_command, run_fingerprint
from mla_cli.engine.devices import choose_device
from mla_cli.engine.evaluate import default_rows
from mla_cli.engine.events import Finished, Note, Steps
from mla_cli.engine.latest import remember
from mla_cli.engine.predictions import read_predictions
from mla_cli.engine.prepare import same_spec
from mla_cli.engine.results import IMPORTED
from mla_cli.engine.run import Run, run_name
from mla_cli.engine.scoring import fused_scores
from mla_cli.engine.session import Session
from mla_cli.engine.train import finish, warned
from mla_cli.errors import MlaError
from mla_cli.files import empty_folder, sync_folder
from mla_cli.locks import FolderLock
from mla_cli.recipe import load_recipe
from mla_cli.schema import Recipe

if TYPE_CHECKING:
    from torch import Tensor


def import_recipe(
    layout: Layout, dataset: str | None, source: str | None, overrides: Sequence[str], flags: Mapping[str, Any]
) -> Recipe:
    """The recipe that says how the model's inputs are made and its data split: the named one, or `DATASET_released`.

    Raises MlaError for a data set of which no such model is known, and for a recipe that cannot be its model's.
    """
    known = ", ".join(layout.datasets)
    if dataset is not None and dataset not in layout.datasets:
        raise MlaError(
            f"layout `{layout.name}` is known for the data sets {known}, not for `{dataset}`",
            "names and shapes of the released models for other data sets are not known here",
        )
    recipe = load_recipe(source or f"{dataset}_released", overrides, flags)
    if recipe.dataset.name not in layout.datasets or dataset not in (None, recipe.dataset.name):
        raise MlaError(
            f"recipe `{source}` is for dataset `{recipe.dataset.name}`, not `{dataset or known}`",
            f"name a recipe for `{dataset or layout.datasets[0]}`, or none",
        )
    return recipe


def check_recipe(recipe: Recipe, layout: Layout) -> None:
    """Raise MlaError, with all problems, for a recipe that is not one of a model in the layout."""
    modalities = recipe.dataset.modalities or list(layout.encoders)
    if set(modalities) != set(layout.encoders):
        raise MlaError(
            f"a model in layout `{layout.name}` has the modalities {', '.join(layout.encoders)}, "
            f"the recipe has {', '.join(modalities)}",
            "leave `dataset.modalities` out",
        )
    if recipe.dataset.protocol == "file" and recipe.dataset.split_file is None:
        raise MlaError(
            "protocol `file` needs the lists that the checkpoint was trained and tested with",
            "add `--split-file LISTS`; or `--set dataset.protocol=random`, where its training samples can be in test",
        )
    content, problems = recipe.model_dump(), []
    for key, value in layout.recipe.items():
        given: Any = content
        for part in key.split("."):
            given = given.get(part, {})
        if given != value:
            problems.append(
                (f"`{key}` is `{given or 'not given'}`", f"--set {key}={'none' if value is None else value}")
            )
    if problems:
        messages, hints = zip(*problems, strict=True)
        raise MlaError(
            f"the recipe is not one of a model in layout `{layout.name}`: {', '.join(messages)}",
            f"add `{' '.join(hints)}`",
        )


def import_run(
    path: Path,
    layout: Layout,
    recipe: Recipe,
    data_dir: Path,
    run_dir: Path,
    device: str = "auto",
    classes: str | None = None,
    force: bool = False,
    command: Sequence[str] = (),
) -> Steps[Run]:
    """Make a finished run of a whole model's checkpoint; the generator's value is that `Run`.

    command: what makes it again. It is built in a folder of its own and moved into place when it is whole.
    """
    tensors, digest, found = read_layout(path, layout)
    check_recipe(recipe, layout)
    store = open_store(recipe, data_dir)
    recipe = complete(recipe, store)
    if found.sides["classes"] != len(store.classes):
        raise MlaError(
            f"the head in `{path}` has {found.sides['classes']} classes, `{store.path}` has {len(store.classes)}",
            classes_hint(recipe, data_dir),
        )
    order = class_order(classes, store.classes)
    data = load_data(recipe, store)
    key = (run_fingerprint(recipe, store), layout.name, digest, order)
    fingerprint = hashlib.sha256(repr(key).encode()).hexdigest()
    run = Run(run_dir / run_name(recipe, fingerprint))
    refuse(run, force)
    where = choose_device(device)
    if recipe.train.threads:
        torch.set_num_threads(recipe.train.threads)
    lock = FolderLock(run_dir / f".{run.name}.importing")
    if not lock.taken():
        raise MlaError(
            f"another process is importing into `{run.path}`{lock.told()}", lock.how_to_go_on("wait until it has ended")
        )
    with lock:
        try:
            empty_folder(lock.folder)  # of one that was killed
            session = Session(recipe, data, where, training=False)
            fill(session, renamed(tensors, layout, [order.index(name) for name in store.classes]), path)
            made = Run(lock.folder / run.name)
            source = {"path": str(path), "sha256": digest, "classes": order, "again": shlex.join(command)}
            made.claim(recipe, fingerprint, facts_of(session, data_dir, found, source), resume=False, force=True)
            yield Note(f"{path}: {found.summary()}")
            yield Note(order_note(order, classes is not None))
            yield from told(made, recipe, data)
            which = "last" if recipe.train.select_on == "last" else "best"
            made.save_checkpoint(which, session.model_state(), {"epoch": 0, "round": 0})
            yield Note(f"scoring val ({len(data.splits['val'])} samples) and test ({len(data.splits['test'])})")
            finish(session, made, selected_on=IMPORTED, checkpoint="imported")
            yield from doubt(made, session, order)
            if run.path.exists():
                os.replace(run.path, lock.folder / "replaced")
            os.replace(made.path, run.path)
            sync_folder(run_dir)
        finally:
            shutil.rmtree(lock.folder, ignore_errors=True)
    remember(run_dir, run.name)
    yield Finished(str(run.path), default_rows(run))
    return run


def facts_of(session: Session, data_dir: Path, found: Found, source: Mapping[str, Any]) -> dict[str, Any]:
    """What `run.json` keeps beyond the recipe."""
    data = session.data
    return {
        "data_dir": str(data_dir),
        "device": str(session.device),
        "threads": torch.get_num_threads(),
        "protocol": data.protocol,
        "data": data.facts,
        "classes": data.classes,
        "store_fingerprint": data.store.fingerprint,  # the run's own fingerprint covers the checkpoint too
        "raw_kinds": {m: data.store.manifest["modalities"][m]["raw_kind"] for m in data.modalities},
        "imported": {
            **source,
            "layout": found.layout.name,
            "matched": {part: names for part, names in found.parts.items() if names},
            "unused": found.names(UNUSED),
            "note": "trained elsewhere: what `train` in recipe.yaml says is not what happened",
        },
    }


def classes_hint(recipe: Recipe, data_dir: Path) -> str:
    """What to do where the number of classes is another."""
    lists = getattr(registry.load("datasets", recipe.dataset.name), "CLASS_LISTS", None)
    if lists is None:
        return "take a checkpoint that was trained on this data set"
    command = f"{prepare_command(recipe, data_dir)} --force --classes LIST"
    return f"prepare it with the classes that it was trained on ({', '.join(lists)} or a file): `{command}`"


def refuse(run: Run, force: bool) -> None:
    """Raise MlaError where the run is there already."""
    if not force and run.path.exists():
        hint = f"evaluate it with `mla eval {run.path}`, or pass `--force`"
        raise MlaError(f"`{run.path}` already holds this checkpoint", hint)


def renamed(tensors: "Mapping[str, Tensor]", layout: Layout, rows: list[int]) -> "dict[str, Tensor]":
    """The tensors under the names of a run's model, the head's rows in the order of the data set's classes."""
    state = {}
    for name, tensor in tensors.items():
        start = next(start for start in layout.becomes if name.startswith(start))
        own = layout.becomes[start] + name.removeprefix(start)
        state[own] = tensor[rows] if own.startswith("heads.") else tensor
    return state


def fill(session: Session, state: "Mapping[str, Tensor]", path: Path) -> None:
    """Load every parameter and buffer of the model. Raises MlaError, with the first differences, if they do not fit."""
    own = session.method.state_dict()
    wrong = sorted(own.keys() ^ state.keys())
    both = [name for name in own if name in state and own[name].shape != state[name].shape]
    wrong += [f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}" for name in both]
    if wrong:
        raise MlaError(
            f"the recipe's model does not take `{path}`: {listed(wrong)}",
            "use the recipe made for it: leave `--recipe` out",
        )
    session.method.load_state_dict(state)


def told(run: Run, recipe: Recipe, data: Data) -> Steps[None]:
    """What the reader of the run's numbers must know."""
    for line in data.facts["split_notes"]:
        yield warned(run, line.removeprefix(WARNING)) if line.startswith(WARNING) else Note(line)
    if data.protocol == "file":
        text = (
            "whether these are the lists it was trained with cannot be seen from the checkpoint; where val is carved "
            "from the training list, it was trained on val"
        )
    else:
        text = (
            f"protocol {data.protocol} did not choose the checkpoint's training samples: it may have been trained on "
            "some of val and test; `--split-file LISTS` takes its own lists"
        )
    yield warned(run, text)
    released = load_recipe(f"{recipe.dataset.name}_released")
    for m in (m for m, spec in recipe.features.items() if not same_spec(released.features[m], spec)):
        yield warned(
            run, f"`features.{m}` is not what the released code takes: the numbers are not the published model's"
        )
    yield warned(run, "not known how its epoch was chosen (the released code keeps the best one on test)")
    for line in leaks_into_test(data.facts["leakage"]):
        yield warned(run, f"protocol {data.protocol} leaks: {line}")


def doubt(run: Run, session: Session, order: list[str]) -> Steps[None]:
    """A warning where val suggests another order of the classes."""
    val, method = read_predictions(run.predictions).of_split("val"), session.method
    fused = fused_scores(val, val.present, session.recipe, method.native_rule, method.default_rule)
    if text := other_order(fused, val.labels, session.data.classes, order):
        yield warned(run, text)
