"""`mla eval --linear-probe`: how much a linear classifier can read from each modality's features.

Per modality, a multinomial logistic regression is fitted to what the head sees, encoder and adapter of the run's
selected checkpoint, d numbers a sample, over the training samples that the run had. The features are standardised by
their training mean and sd. Minimised is

    mean cross-entropy + l2 / 2 |W|^2        (logits = W x + b; b is not penalised)

by L-BFGS in float64. l2 is chosen from `STRENGTHS` by accuracy on val; of equal ones the largest. Nothing is random.
(In scikit-learn's terms C = 1 / (l2 n), for two classes 2 / (l2 n).)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mla_cli import registry
from mla_cli.core.metrics import accuracy
from mla_cli.engine.data import SPLITS, Data, complete, load_data, open_store, prepare_command, run_fingerprint
from mla_cli.engine.evaluate import Evaluator, common_facts, count_groups
from mla_cli.engine.events import Note, Progress, Steps
from mla_cli.engine.predictions import Predictions, read_predictions
from mla_cli.engine.run import Run
from mla_cli.engine.scores import DEFAULT, Output, score_rows
from mla_cli.errors import MlaError
from mla_cli.schema import Recipe

if TYPE_CHECKING:
    from mla_cli.engine.session import Session

READOUT = "linear probe"
STRENGTHS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # of the penalty, strongest first
ENCODE_BATCH = 64
MOST_STEPS = 500  # of L-BFGS
PRECISION = 1e-5  # largest entry of the gradient at which it stops: far below what moves an accuracy


@dataclass(frozen=True)
class Linear:
    """A fitted classifier. weight: (class, d) on standardised features; classes: those of the training samples."""

    mean: np.ndarray
    sd: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    classes: np.ndarray
    l2: float
    converged: bool

    def logits(self, features: np.ndarray, num_classes: int) -> np.ndarray:
        """(n, d) -> (n, class) in float64; classes without training samples get -inf."""
        out = np.full((len(features), num_classes), -np.inf)
        out[:, self.classes] = (features - self.mean) / self.sd @ self.weight.T + self.bias
        return out


@dataclass(frozen=True)
class Probed:
    """The rows of a run's probes and of its own readout, and what the probes rest on by modality."""

    rows: list[dict[str, Any]]
    strengths: dict[str, float]
    num_train: dict[str, int]


def fit(features: np.ndarray, labels: np.ndarray, l2: float, start: Linear | None = None) -> Linear:
    """Fit one classifier. features: (n, d), labels: int (n,); start: a fit of the same samples to begin from."""
    from scipy.optimize import minimize

    x = np.asarray(features, np.float64)
    mean, sd = x.mean(0), x.std(0)
    sd = np.where(sd <= 1e-12 * np.abs(mean), 1.0, sd)  # constant but for rounding
    x = (x - mean) / sd
    classes, wanted = np.unique(labels, return_inverse=True)
    count, width, rows = len(classes), x.shape[1], np.arange(len(x))

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight, bias = flat[: count * width].reshape(count, width), flat[count * width :]
        logits = x @ weight.T + bias
        logits -= logits.max(1, keepdims=True)
        error = np.exp(logits)
        total = error.sum(1, keepdims=True)
        loss = float((np.log(total[:, 0]) - logits[rows, wanted]).mean())
        error /= total
        error[rows, wanted] -= 1
        error /= len(x)
        gradient = np.concatenate([(error.T @ x + l2 * weight).ravel(), error.sum(0)])
        return loss + l2 / 2 * float(np.square(weight).sum()), gradient

    first = np.zeros(count * (width + 1)) if start is None else np.concatenate([start.weight.ravel(), start.bias])
    options = {"maxiter": MOST_STEPS, "maxfun": 2 * MOST_STEPS, "gtol": PRECISION, "ftol": 0.0}
    done = minimize(objective, first, jac=True, method="L-BFGS-B", options=options)
    weight, bias = done.x[: count * width].reshape(count, width), done.x[count * width :]
    return Linear(mean, sd, weight, bias, classes, l2, bool(np.abs(done.jac).max() <= PRECISION))


def choose(
    train: tuple[np.ndarray, np.ndarray], val: tuple[np.ndarray, np.ndarray], num_classes: int, modality: str
) -> Steps[Linear]:
    """The classifier with the best accuracy on val over `STRENGTHS`; each pair is (features, labels)."""
    best, best_accuracy, last = None, -1.0, None
    for done, l2 in enumerate(STRENGTHS, 1):
        last = fit(*train, l2, last)
        found = accuracy(last.logits(val[0], num_classes), val[1])
        if found > best_accuracy:
            best, best_accuracy = last, found
        yield Progress(f"probes of {modality}", done, len(STRENGTHS))
    assert best is not None
    if not best.converged:
        yield Note(f"the probe of {modality} (l2 {best.l2:g}) stopped after {MOST_STEPS} steps", warning=True)
    return best


def probe(run: Run, data_dir: Path, split: str = "test") -> Steps[Probed]:
    """Probe every modality of a finished run on a split of its own data.

    Raises MlaError where the data are not there, or not those that the run was trained on.
    """
    import torch

    from mla_cli.engine.rescore import scoring_session

    own = read_predictions(run.predictions)
    of_split = own.of_split(split)
    recipe, data = run_data(run, data_dir, own)
    session = scoring_session(run, recipe, data.store, data.splits, data.classes)
    session.method.eval()
    common = common_facts(run, recipe, own, split) | {
        "selected_on": "test" if recipe.train.select_on == "test" else "val",
        "missing_rate": 0.0,
        "realised_rate": 0.0,
        "fusion": "",
        "alone_readout": READOUT,
    }
    head = Evaluator(of_split, recipe, common_facts(run, recipe, own, split))
    rows, strengths, num_train = list(head.alone_rows()), {}, {}
    for m in session.method.modalities:
        have = {name: np.flatnonzero(present[:, data.modalities.index(m)]) for name, present in presences(data).items()}
        if not all(len(have[name]) for name in {"train", "val", split}):
            yield Note(f"{m} has no sample in train, val or {split}: not probed", warning=True)
            continue
        with torch.no_grad():
            features = yield from encode(session, m, {name: have[name] for name in SPLITS if len(have[name])})
        labels = {name: data.splits[name].labels[have[name]] for name in features}
        found = yield from choose(
            (features["train"], labels["train"]), (features["val"], labels["val"]), len(data.classes), m
        )
        strengths[m], num_train[m] = found.l2, len(have["train"])
        scored = Output(found.logits(features[split], len(data.classes)), labels[split], head.units[have[split]])
        counts = {"num_samples": len(scored.labels), "num_groups": count_groups(scored.units)}
        for facts in score_rows(scored, DEFAULT, data.classes, bounded=True):
            rows.append(common | counts | {"output": m} | facts)
    return Probed(rows, strengths, num_train)


def presences(data: Data) -> dict[str, np.ndarray]:
    """bool (sample, modality) of every split; of train after the draw of missing ones."""
    return {name: samples.present for name, samples in data.splits.items()} | {"train": data.train_present}


def encode(session: "Session", modality: str, positions: dict[str, np.ndarray]) -> Steps[dict[str, np.ndarray]]:
    """Features, float64 (n, d), of the samples at these positions of each split."""
    total, done = sum(len(where) for where in positions.values()), 0
    found: dict[str, np.ndarray] = {}
    for split, where in positions.items():
        loader, parts = session.split_loader(split).modalities[modality], []
        for start in range(0, len(where), ENCODE_BATCH):
            batch = loader.gather(where[start : start + ENCODE_BATCH])
            parts.append(session.method.encode(modality, batch).double().cpu().numpy())
            done += len(batch)
            yield Progress(f"features of {modality}", done, total)
        found[split] = np.concatenate(parts)
        if not np.isfinite(found[split]).all():
            raise MlaError(
                f"the features of `{modality}` hold values that are NaN or infinite",
                "the run diverged: train it again with a lower `train.lr`",
            )
    return found


# ---------------------------------------------------------------- the run's own data


def run_data(run: Run, data_dir: Path, own: Predictions) -> tuple[Recipe, Data]:
    """The data that a run was trained on. Raises MlaError naming the first thing that is not as it was."""
    recipe, info = run.recipe(), run.info()
    path, trained_in = data_dir / recipe.store, Path(info.get("data_dir", data_dir))
    if not (path / "manifest.json").is_file() and (trained_in / recipe.store / "manifest.json").is_file():
        raise MlaError(
            f"the run's data are not under `{data_dir}`",
            f"it was trained on `{trained_in}`: add --data-dir {trained_in}",
        )
    store = open_store(recipe, data_dir)
    command = prepare_command(recipe, data_dir, run.recipe_file)  # the run's own feature specs
    again = f"prepare the run's data again with `{command}`, or train a run on what is there"
    if store.classes != own.facts["classes"]:
        raise changed(path, "the classes", again)
    try:
        recipe = complete(recipe, store)
    except MlaError as error:  # a modality is gone, or was prepared with another feature spec
        raise MlaError(error.message, again) from None
    data = load_data(recipe, store, aligned=registry.load("methods", recipe.method.name).Method.aligned)
    for split in SPLITS:
        now = len(data.splits[split])
        before = info.get("data", {}).get(split, {}).get("samples", now)
        if before != now:
            raise changed(path, f"split `{split}` has {now} samples, not {before}", again)
        if split != "train" and own.of_split(split).ids.tolist() != data.splits[split].ids.tolist():
            raise changed(path, f"split `{split}` has other samples", again)
    known = info.get("store_fingerprint")
    same = store.fingerprint == known if known else run_fingerprint(recipe, store) == info.get("data_fingerprint")
    if not same:
        raise changed(path, "the ids, labels, groups or values of the samples", again)
    return recipe, data


def changed(path: Path, what: str, hint: str) -> MlaError:
    """The data are not those of the run."""
    return MlaError(f"`{path}` is not what the run was trained on: {what}", hint)


def pairs_of(rows: Sequence[dict[str, Any]]) -> dict[str, dict[tuple[bool, str], dict[str, Any]]]:
    """Rows by modality and by (probe or own readout, metric): what a table sets side by side."""
    found: dict[str, dict[tuple[bool, str], dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["output"], {})[row["alone_readout"] == READOUT, row["metric"]] = row
    return found
