"""From a recipe and a store to the samples of every split: protocol, fold, pairs, missing modalities, normalisation.

Everything here is NumPy: `mla eval` uses it too. `engine/train.py` turns it into tensors.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mla_cli import registry
from mla_cli.core.weights import has_weights, weights_digest
from mla_cli.data import splits
from mla_cli.data.hub import check_maker
from mla_cli.data.leakage import leakage_report
from mla_cli.data.modality_store import ModalityStore
from mla_cli.data.normalise import fixed_normalisation
from mla_cli.data.samples import Samples, pair_by_class, unpaired
from mla_cli.data.split_files import apply_split_file, read_split_file
from mla_cli.data.store import Store, is_prepared
from mla_cli.engine.draws import TrainingDraw, draw_training
from mla_cli.engine.events import Note, Steps
from mla_cli.errors import MlaError
from mla_cli.recipe import default_encoder
from mla_cli.schema import Recipe
from mla_cli.specs import same_spec

SPLITS = ("train", "val", "test")


@dataclass
class Data:
    """One experiment's data.

    train_present: bool (sample, modality) after the training draw of missing modalities, which is `draw` (None where
    nothing is taken away). facts: for `run.json`.
    """

    store: Store
    protocol: str
    modalities: list[str]
    classes: list[str]
    splits: dict[str, Samples]
    train_present: np.ndarray
    normalisation: dict[str, tuple[np.ndarray, np.ndarray]]
    facts: dict[str, Any] = field(default_factory=dict)
    draw: TrainingDraw | None = None

    def stores(self) -> dict[str, ModalityStore]:
        return {m: self.store.modality(m) for m in self.modalities}


def open_store(recipe: Recipe, data_dir: Path) -> Store:
    """The recipe's prepared data. Raises MlaError with the exact `mla prepare` command where there are none."""
    name, path = recipe.dataset.name, data_dir / recipe.store
    if not is_prepared(path):
        if name not in registry.names("datasets"):
            raise MlaError(
                f"no dataset named `{name}`",
                registry.did_you_mean(name, registry.names("datasets")),
            )
        raise MlaError(f"`{name}` is not prepared under `{data_dir}`", f"run `{prepare_command(recipe, data_dir)}`")
    return Store.open(path)


def ensure_prepared(recipe: Recipe, data_dir: Path) -> Steps[None]:
    """Prepare a built-in data set that is not there yet; any other is the user's to prepare."""
    name = recipe.dataset.name
    if name not in registry.names("datasets") or not getattr(registry.load("datasets", name), "BUILT_IN", False):
        return
    if not is_prepared(data_dir / recipe.store):
        from mla_cli.engine.prepare import prepare  # decoders and workers: not needed once a set is prepared

        yield Note(f"preparing the built-in data set {name}")
        yield from prepare(name, data_dir, recipe)


def prepare_command(recipe: Recipe, data_dir: Path, source: Path | None = None) -> str:
    """The command that makes the store which a recipe wants; words in capitals are the user's to fill in.

    source: the recipe's file, where it is not one of those that are known by name.
    """
    name, shipped = recipe.dataset.name, registry.recipe_paths()
    command = f"mla prepare {name}"
    if source is not None:
        command += f" --recipe {source}"
    elif recipe.name in shipped and (recipe.name != name or f"{name}_small" in shipped):
        command += f" --recipe {recipe.name}"
    if name not in registry.names("datasets") or not getattr(registry.load("datasets", name), "BUILT_IN", False):
        command += " --root RAW_FOLDER"
    if recipe.dataset.protocol == "file":
        command += f" --split-file {recipe.dataset.split_file or 'LISTS'}"
    for m, spec in recipe.features.items():
        if getattr(spec, "tokens", "") == "wordpiece" and getattr(spec, "vocabulary", None) is None:
            command += f" --set features.{m}.vocabulary=VOCAB_TXT"
    return command + ("" if data_dir == Path("data") else f" --data-dir {data_dir}")


def complete(recipe: Recipe, store: Store) -> Recipe:
    """The recipe with everything the data decide: modalities, protocol, feature specs, encoders by kind, order.

    Raises MlaError for a modality that the store lacks, and for a store made with another feature spec.
    """
    content = recipe.model_copy(deep=True)
    modalities = content.dataset.modalities or store.modalities
    for modality in [*modalities, *content.features]:
        if modality not in store.modalities:
            hint = registry.did_you_mean(modality, store.modalities)
            raise MlaError(f"`{recipe.store}` has no modality `{modality}`", hint)
    for modality in modalities:
        stored, wanted = store.spec(modality), content.features.get(modality)
        if wanted is not None and not same_spec(wanted, stored):
            old, new = stored.model_dump(), wanted.model_dump()
            changed = ", ".join(f"{k}={old.get(k)!r}" for k in old if new.get(k) != old[k])
            own = None if recipe.name in registry.recipe_paths() else Path(f"{recipe.name}.yaml")  # named by its file
            command = prepare_command(recipe, store.path.parent, own)
            raise MlaError(
                f"`{store.path}` was prepared with another feature spec for `{modality}` ({changed})",
                f"run `{command}` to build it again, or keep both with `--set dataset.store=NAME`",
            )
        content.features[modality] = stored  # type: ignore[assignment]
        content.encoders.setdefault(modality, default_encoder(stored.kind))  # type: ignore[attr-defined]
        made_by = store.makers([modality]).get(modality)
        check_maker(modality, stored, made_by, content.encoders[modality].options().get("model"))
    for section in (content.features, content.encoders, content.augment):
        for modality in [m for m in section if m not in modalities]:
            del section[modality]
    content.features = {m: content.features[m] for m in modalities}
    content.encoders = {m: content.encoders[m] for m in modalities}
    content.dataset.modalities = list(modalities)
    order = content.method.order or list(modalities)
    if set(order) != set(modalities):
        raise MlaError(
            f"`method.order` is {order}, the modalities are {list(modalities)}", "name every modality at least once"
        )
    content.method.order = order
    module = registry.load("datasets", store.manifest["dataset"])
    protocols = list(module.PROTOCOLS)
    if content.dataset.split_file is not None:
        content.dataset.protocol = "file"
    elif content.dataset.protocol is None:
        content.dataset.protocol = (
            module.default_protocol(store.index) if hasattr(module, "default_protocol") else protocols[0]
        )
    if content.dataset.protocol not in protocols:
        hint = registry.did_you_mean(content.dataset.protocol, protocols)
        raise MlaError(f"`{recipe.store}` has no protocol `{content.dataset.protocol}`", hint)
    return content


def load_data(recipe: Recipe, store: Store, aligned: bool = False) -> Data:
    """Splits, pairs and normalisation for a completed recipe. aligned: training needs whole samples, so unpaired data
    are paired for it too. Raises MlaError for a class that a split lacks."""
    modalities = recipe.dataset.modalities or store.modalities
    index, dataset = store.index, recipe.dataset
    side, notes = sides(recipe, store)
    rows = store.positions(modalities)
    keep = (rows >= 0).any(1) & (side != "")
    try:
        splits.check_classes(side[keep], index["label"].to_numpy()[keep], store.classes)
    except MlaError as error:  # lists that do not fit are the likely reason
        raise MlaError(error.message, "\n".join([error.hint, *notes])) from None
    ids, groups = index["id"].to_numpy(object), index["group"].to_numpy(object)
    found: dict[str, Samples] = {}
    report = leakage(index, side, modalities)
    facts: dict[str, Any] = {"leakage": report, "split_notes": notes}
    must_pair = unpaired(rows[keep] >= 0)
    for split in SPLITS:
        chosen = np.flatnonzero(keep & (side == split))
        samples = Samples(split, list(modalities), ids[chosen], store.labels[chosen], groups[chosen], rows[chosen])
        if must_pair and (split != "train" or aligned):
            samples = pair_by_class(samples, store.classes, dataset.pair_seed)
        found[split] = samples.limited(dataset.limit, dataset.split_seed)
        facts[split] = {"samples": len(found[split]), "distinct": found[split].distinct}
    train = found["train"]
    draw = draw_training(recipe, train)
    if draw is not None:
        facts["train_missing"] = draw.facts()
    present = train.present if draw is None else draw.present
    normalisation = {}
    for i, m in enumerate(modalities):
        fixed = fixed_normalisation(m, recipe.encoders[m], store.spec(m)) if m in recipe.encoders else None
        if fixed is not None:
            normalisation[m] = fixed
            continue
        # A row that the draw took away is not there: its values must not reach training through mean and sd either.
        taken = np.setdiff1d(train.rows[train.present[:, i], i], train.rows[present[:, i], i])
        counted = keep & (side == "train") & (rows[:, i] >= 0) & ~np.isin(rows[:, i], taken)
        normalisation[m] = store.normalisation(m, np.flatnonzero(counted))
        check_scale(m, normalisation[m][1])
    if must_pair:
        facts["pair_seed"] = dataset.pair_seed
    return Data(
        store, dataset.protocol or "", list(modalities), store.classes, found, present, normalisation, facts, draw
    )


def check_scale(modality: str, sd: np.ndarray) -> None:
    """Raise MlaError for values so close together that dividing by their sd leaves float32."""
    small = float(sd.min())
    if small * float(np.finfo(np.float32).max) < 1:
        raise MlaError(
            f"`{modality}` cannot be normalised in float32: the sd of its training values is {small:.2g}",
            f"store them in another unit, or take them as they are with `--set encoders.{modality}.normalise=none`",
        )


def sides(recipe: Recipe, store: Store) -> tuple[np.ndarray, list[str]]:
    """`train`, `val`, `test` or "" for every row of the store, and what to tell about published lists."""
    dataset = recipe.dataset
    if dataset.split_file is not None:
        side, report = apply_split_file(store.index, read_split_file(dataset.split_file), dataset.split_seed)
        return side, report.lines()
    if dataset.protocol == "file":
        raise MlaError(
            "protocol `file` needs the lists", "add `--set dataset.split_file=LISTS` or `--split-file LISTS`"
        )
    module = registry.load("datasets", store.manifest["dataset"])
    return module.split(store.index, dataset.protocol, dataset.split_seed, dataset.fold), []


def leakage(index: pd.DataFrame, side: np.ndarray, modalities: Sequence[str]) -> dict[str, Any]:
    """The leakage report of a split: groups and identical content on two sides, label balance."""
    hashes = {m: index[f"hash.{m}"].to_numpy(object) for m in modalities if f"hash.{m}" in index}
    used = side != ""
    return leakage_report(index[used], side[used], {m: values[used] for m, values in hashes.items()})


def run_fingerprint(recipe: Recipe, store: Store) -> str:
    """The part of a run's hash that lies in files: the store's fingerprint; where used, split lists and weights.

    recipe: a completed one. Raises MlaError for a weights file that is not there, or not the one of its `sha256`.
    """
    parts: list[Any] = [store.fingerprint]
    if recipe.dataset.split_file is not None:
        parts.append([(e.stem, e.split) for e in read_split_file(recipe.dataset.split_file).entries])
    digests = [(m, weights_digest(m, section)) for m, section in recipe.encoders.items() if has_weights(section)]
    if digests:
        parts.append(digests)
    return store.fingerprint if len(parts) == 1 else hashlib.sha256(repr(tuple(parts)).encode()).hexdigest()
