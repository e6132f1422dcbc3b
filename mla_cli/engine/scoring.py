"""Run a trained method over a split, once: logits of every modality alone, and of every subset where a method mixes."""

from typing import Any

import numpy as np
import torch

from mla_cli.core import fusion
from mla_cli.data.missing import subsets
from mla_cli.data.rates import check_modality
from mla_cli.data.samples import Samples
from mla_cli.engine.predictions import Predictions
from mla_cli.engine.scoring_rules import fixed_weights
from mla_cli.engine.session import Session
from mla_cli.errors import MlaError
from mla_cli.schema import Recipe

SCORE_BATCH = 256
MAX_MIXED = 6  # a mixing method stores 2^M - 1 columns of logits


def wanted_subsets(recipe: Recipe, modalities: list[str]) -> list[frozenset[str]]:
    """The subsets that a mixing method is scored on, small ones first: `subsets`, and always all modalities together.

    Where the recipe names none: all, for at most six modalities. Raises MlaError for more, and for a name that is none.
    """
    if recipe.subsets is None:
        if len(modalities) > MAX_MIXED:
            count = len(modalities)
            raise MlaError(
                f"`{recipe.method.name}` mixes modalities inside: {count} modalities are "
                f"{2**count - 1} subsets to score, more than {2**MAX_MIXED - 1}",
                f"name those to score, for example `--set 'subsets=[[{modalities[0]}], [{', '.join(modalities[:2])}]]'`"
                ", or at most six modalities with `--set dataset.modalities=[...]`",
            )
        return [frozenset(subset) for subset in subsets(modalities)]
    for subset in recipe.subsets:
        if not subset:
            raise MlaError("`subsets` holds an empty subset", f"choose from {', '.join(modalities)}")
        for name in subset:
            check_modality(name, modalities)
    return sorted({frozenset(modalities), *map(frozenset, recipe.subsets)}, key=lambda s: (len(s), sorted(s)))


def check_subsets(session: Session) -> None:
    """Raise MlaError for a mixing method whose subsets cannot be scored; before training, not after it."""
    if session.method.mixes:
        wanted_subsets(session.recipe, session.method.modalities)


@torch.no_grad()
def score(session: Session, split: str, every_subset: bool) -> Predictions:
    """Predictions of one split by the session's current weights.

    every_subset: for a mixing method, all subsets of given modalities (for missing-modality tables), else only what is
    naturally there, which is enough to validate. The encoders run once per sample either way. Several ranks score a
    part of the samples each, and each returns the whole.
    """
    method, loader = session.method, session.split_loader(split)
    samples, modalities = loader.samples, method.modalities
    columns = [samples.modalities.index(m) for m in modalities]
    present = samples.present[:, columns]
    method.eval()
    alone = np.full((len(samples), len(modalities), len(session.data.classes)), np.nan, np.float32)
    full = frozenset(modalities)
    wanted = [full]
    if method.mixes and every_subset:
        wanted = wanted_subsets(session.recipe, modalities)
    mixed = {s: np.empty((len(samples), alone.shape[2]), np.float32) for s in (wanted if method.mixes else [])}
    blank = {m: method.encode(m, session.blanks[m][None]) for m in modalities} if method.mixes else {}
    mine = session.ranks.share(len(samples))
    for start in range(mine.start, mine.stop, SCORE_BATCH):
        positions = np.arange(start, min(start + SCORE_BATCH, mine.stop))
        has = torch.from_numpy(present[positions]).to(session.device)
        features = {m: method.encode(m, loader.modalities[m].batch(positions)) for m in modalities}
        for i, m in enumerate(modalities):
            logits = method.alone(m, features[m]).float().cpu().numpy()
            alone[positions, i] = np.where(present[positions, i, None], logits, np.nan)
        for subset, out in mixed.items():
            given = {
                m: torch.where(has[:, i, None], features[m], blank[m]) if m in subset else blank[m].expand(len(has), -1)
                for i, m in enumerate(modalities)
            }
            out[positions] = method.combine(given).float().cpu().numpy()
    if not session.ranks.is_alone:
        parts = session.ranks.gather((alone[mine], [out[mine] for out in mixed.values()]))
        alone = np.concatenate([part for part, _ in parts])
        mixed = {s: np.concatenate([outs[i] for _, outs in parts]) for i, s in enumerate(mixed)}
    broken = (present & ~np.isfinite(alone).all(-1)).any(1)
    for out in mixed.values():
        broken |= ~np.isfinite(out).all(-1)
    if broken.any():
        raise MlaError(
            f"logits of {int(broken.sum())} of {len(samples)} samples of split `{split}` are NaN or infinite "
            f"(first: `{samples.ids[broken.argmax()]}`)",
            "the run diverged: lower `train.lr`, or check the features of that sample",
        )
    return Predictions(
        samples.ids,
        np.full(len(samples), split, dtype=object),
        samples.groups,
        samples.labels,
        list(modalities),
        present,
        alone,
        mixed,
        {},
    )


def fused_scores(
    predictions: Predictions, present: np.ndarray, recipe: Recipe, native_rule: str, default: str
) -> np.ndarray:
    """Fused logits (sample, class) under the recipe's rule, for validation. Samples with nothing present: NaN."""
    rule = recipe.fusion.rule or default
    if rule == "native":
        if predictions.subsets:
            return predictions.subsets[frozenset(predictions.modalities)]
        rule = native_rule
    weights = fixed_weights(recipe, predictions.modalities) if rule == "fixed" else None
    out = np.full((len(predictions), predictions.logits.shape[2]), np.nan, np.float32)
    some = present.any(1)
    out[some] = fusion.fuse(
        predictions.logits[some], present[some], rule, recipe.fusion.of, weights, recipe.fusion.batch_size
    )
    return out


def accuracies(predictions: Predictions, fused: np.ndarray) -> dict[str, float]:
    """Fraction correct per modality (over the samples that have it) and fused (over samples that have anything)."""
    found: dict[str, float] = {}
    for i, m in enumerate(predictions.modalities):
        has = predictions.present[:, i]
        if has.any():
            found[m] = float((predictions.logits[has, i].argmax(1) == predictions.labels[has]).mean())
    some = ~np.isnan(fused[:, 0])
    found["fused"] = float((fused[some].argmax(1) == predictions.labels[some]).mean()) if some.any() else 0.0
    return found


def describe_samples(samples: Samples) -> dict[str, Any]:
    """What the split's numbers rest on."""
    return {"samples": len(samples), "distinct": samples.distinct, "pair_seed": samples.paired_with_seed}
