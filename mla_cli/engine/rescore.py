"""Score a finished run's model on other data: another prepared set, or the rows of a table.

Inputs are normalised as in training: the checkpoint holds mean, standard deviation and imputed inputs, so the training
data need not be there.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch

from mla_cli import registry
from mla_cli.data.samples import Samples, pair_by_class, unpaired
from mla_cli.data.store import Store
from mla_cli.engine.data import SPLITS, Data, sides
from mla_cli.engine.evaluate import Evaluator
from mla_cli.engine.events import Note, Steps
from mla_cli.engine.predictions import Predictions, join, read_predictions
from mla_cli.engine.prepare import prepare
from mla_cli.engine.run import Run
from mla_cli.engine.scoring import describe_samples, score
from mla_cli.engine.session import Session
from mla_cli.errors import MlaError
from mla_cli.schema import Recipe
from mla_cli.specs import same_spec


def matching_store(path: Path, recipe: Recipe) -> Store:
    """Open a store that has the run's modalities and feature specs. Raises MlaError naming the difference."""
    store = Store.open(path)
    wanted = list(recipe.features)
    missing = [m for m in wanted if m not in store.modalities]
    if missing:
        raise MlaError(
            f"`{path}` has no modality `{missing[0]}`; the run was trained on {', '.join(wanted)}",
            f"it has {', '.join(store.modalities)}; choose a set with equal modalities",
        )
    for m in wanted:
        if not same_spec(recipe.features[m], store.spec(m)):
            raise MlaError(
                f"`{path}` was prepared with another feature spec for `{m}` than the run",
                f"prepare it with the run's recipe: `mla prepare {store.manifest['dataset']} --recipe RUN/recipe.yaml`",
            )
    return store


def scoring_session(run: Run, recipe: Recipe, store: Store, splits: dict[str, Samples], classes: list[str]) -> Session:
    """The run's model with its selected weights, over other samples.

    Raises MlaError where their tokens or sounds were made by another tokenizer or extractor than those of training.
    """
    modalities = list(recipe.features)
    trained, made = run.info().get("made_by", {}), store.makers(modalities)
    for m in modalities:
        if trained.get(m) != made.get(m):
            raise MlaError(
                f"the features of `{m}` were made by another tokenizer or extractor than those `{run.path}` trained on",
                "put the old one back where the recipe has it, and prepare the data again with `--force`",
            )
    which = "last" if recipe.train.select_on == "last" else "best"
    tensors, _ = run.load_checkpoint(which)
    normalisation = {
        m: (tensors[f"mean.{m}"].numpy(), tensors[f"sd.{m}"].numpy()) for m in modalities if f"mean.{m}" in tensors
    }
    empty = np.zeros((0, len(modalities)), bool)
    data = Data(store, "", modalities, classes, splits, empty, normalisation)
    session = Session(recipe, data, torch.device("cpu"), training=False)
    session.load_model(tensors)
    return session


def score_dataset(run: Run, name: str, data_dir: Path) -> Steps[Predictions]:
    """Predictions of the run's model for val and test of another prepared set with equal modalities and classes."""
    recipe, own = run.recipe(), read_predictions(run.predictions)
    store = matching_store(data_dir / name, recipe)
    if store.classes != own.facts["classes"]:
        raise MlaError(
            f"`{name}` has other classes than the run ({', '.join(store.classes[:4])}, ...)",
            "score rows without labels with `mla eval RUN --table FILE`",
        )
    module = registry.load("datasets", store.manifest["dataset"])
    same = store.manifest["dataset"] == recipe.dataset.name
    protocol = recipe.dataset.protocol if same else next(iter(module.PROTOCOLS))
    yield Note(f"scoring {name}, protocol {protocol}")
    side = sides(recipe, store)[0] if same else module.split(store.index, protocol, recipe.dataset.split_seed, 0)
    rows = store.positions(list(recipe.features))
    keep = (rows >= 0).any(1)
    splits = {}
    for split in SPLITS[1:]:
        chosen = np.flatnonzero(keep & (side == split))
        samples = samples_of(store, list(recipe.features), split, chosen)
        if unpaired(rows[keep] >= 0):
            samples = pair_by_class(samples, store.classes, recipe.dataset.pair_seed)
        splits[split] = samples
    session = scoring_session(run, recipe, store, splits, store.classes)
    predictions = join({split: score(session, split, every_subset=True) for split in splits})
    described = {split: describe_samples(samples) for split, samples in splits.items()}
    other = {"dataset": name, "protocol": protocol, "splits": described, "data_fingerprint": store.fingerprint}
    predictions.facts = own.facts | other
    return predictions


def samples_of(store: Store, modalities: list[str], split: str, chosen: np.ndarray) -> Samples:
    """Rows of a store as samples of one split."""
    index = store.index
    ids, groups = index["id"].to_numpy(object), index["group"].to_numpy(object)
    return Samples(
        split, modalities, ids[chosen], store.labels[chosen], groups[chosen], store.positions(modalities)[chosen]
    )


def score_table(run: Run, table: Path, root: Path | None, out: Path) -> Steps[list[str]]:
    """Predict the rows of a table and write them to `out`; the value is what to tell the user.

    The table needs `id` and one column per modality of the run; labels are not used. Rows that cannot be read are
    listed, not scored.
    """
    recipe, own = run.recipe(), read_predictions(run.predictions)
    if out.exists():
        raise MlaError(f"`{out}` exists", "name another file with `--out`")
    modalities = list(recipe.features)
    kinds = {m: run.info()["raw_kinds"][m] for m in modalities}
    with tempfile.TemporaryDirectory(prefix="mla-") as folder:
        options = {"table": table, "kinds": kinds, "labelled": False}
        base = root or table.parent
        prepared = yield from prepare(
            "table", Path(folder), recipe, base, store="table", max_bad=1.0, scan_options=options
        )
        store = Store.open(prepared.path)
        keep = np.flatnonzero((store.positions(own.modalities) >= 0).any(1))  # `unimodal` uses one of the modalities
        if not len(keep):
            raise MlaError(f"no row of `{table}` has anything to score", "see the problems above")
        samples = samples_of(store, modalities, "new", keep)
        classes = own.facts["classes"]
        session = scoring_session(run, recipe, store, {"new": samples}, classes)
        predictions = score(session, "new", every_subset=True)
    predictions.labels = np.full(len(predictions), -1, np.int32)
    predictions.facts = own.facts | {"dataset": str(table), "protocol": "", "splits": {"new": {"samples": len(keep)}}}
    fused = fused_logits(predictions, recipe)
    predictions.write(out, fused=fused)
    problems = [f"{p.kind}: {p.id} {p.modality} {p.file}: {p.reason}" for p in prepared.problems]
    counts = np.bincount(fused.argmax(1), minlength=len(classes))
    return [
        f"scored {len(predictions)} rows of {table} with {run.path}, wrote {out}",
        "predicted: " + ", ".join(f"{name} {n}" for name, n in zip(classes, counts, strict=True) if n),
        *problems,
    ]


def fused_logits(predictions: Predictions, recipe: Recipe) -> np.ndarray:
    """Fused logits (sample, class) under the run's fusion rule."""
    rule = recipe.fusion.rule or predictions.facts["default_rule"]
    return Evaluator(predictions, recipe, {}).fused(rule, predictions.present)
