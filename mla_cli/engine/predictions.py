"""`predictions.parquet`: logits per sample and modality, from which every fusion and missing-modality table is made.

Columns `id, split, group, label: int32, present.<modality>: bool, logits.<modality>`; for methods that mix modalities
inside also `logits.<m1+m2>` per subset of given modalities (a single one: `logits.+<m>`, the rest imputed). Logits are
fixed-size lists of float32, NaN where the modality is absent. Class names, recipe hash, data fingerprint, pairing and
the method's own fusion rule stand in the file's metadata (key `mla`, JSON). Read without torch.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mla_cli.data.missing import subsets
from mla_cli.engine.run import Run
from mla_cli.errors import MlaError
from mla_cli.files import whole_file


@dataclass
class Predictions:
    """Predictions of one split (or several, row after row).

    present: bool (sample, modality), natural presence. logits: float32 (sample, modality, class), each modality alone.
    subsets: for methods that mix modalities, frozenset of given modalities -> float32 (sample, class).
    """

    ids: np.ndarray
    splits: np.ndarray
    groups: np.ndarray
    labels: np.ndarray
    modalities: list[str]
    present: np.ndarray
    logits: np.ndarray
    subsets: dict[frozenset[str], np.ndarray]
    facts: dict[str, Any]

    def __len__(self) -> int:
        return len(self.ids)

    def of_split(self, split: str) -> "Predictions":
        """The rows of one split. Raises MlaError where there are none."""
        chosen = np.flatnonzero(self.splits == split)
        if not len(chosen):
            raise MlaError(f"no predictions for split `{split}`", "choose val or test")
        return self.take(chosen)

    def take(self, chosen: np.ndarray) -> "Predictions":
        """Some of the rows, by position or bool."""
        return replace(
            self,
            ids=self.ids[chosen],
            splits=self.splits[chosen],
            groups=self.groups[chosen],
            labels=self.labels[chosen],
            present=self.present[chosen],
            logits=self.logits[chosen],
            subsets={key: value[chosen] for key, value in self.subsets.items()},
        )

    def write(self, path: Path, fused: np.ndarray | None = None) -> None:
        """Write the whole file; equal predictions give equal bytes.

        fused: (sample, class) logits, kept as `logits.fused` beside the class they predict, for rows without labels.
        """
        columns: dict[str, Any] = {
            "id": pa.array(self.ids, pa.string()),
            "split": pa.array(self.splits, pa.string()),
            "group": pa.array(self.groups, pa.string()),
            "label": pa.array(self.labels, pa.int32()),
        }
        for i, m in enumerate(self.modalities):
            columns[f"present.{m}"] = pa.array(self.present[:, i])
            columns[f"logits.{m}"] = _vectors(self.logits[:, i])
        for subset, logits in self.subsets.items():
            columns[f"logits.{subset_name(subset, self.modalities)}"] = _vectors(logits)
        if fused is not None:
            names = np.array(self.facts["classes"], dtype=object)
            columns |= {"logits.fused": _vectors(fused), "predicted": pa.array(names[fused.argmax(1)], pa.string())}
        facts = self.facts | {"modalities": self.modalities}
        table = pa.table(columns).replace_schema_metadata({"mla": json.dumps(facts, sort_keys=True)})
        with whole_file(path) as file:
            pq.write_table(table, file)


def subset_name(subset: frozenset[str], modalities: list[str]) -> str:
    """Column suffix of a subset of given modalities, in the modalities' order."""
    return "+".join(m for m in modalities if m in subset) if len(subset) > 1 else "+" + next(iter(subset))


def _vectors(values: np.ndarray) -> pa.Array:
    """(sample, class) as fixed-size lists of float32."""
    flat = pa.array(np.ascontiguousarray(values, np.float32).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _matrix(table: pa.Table, column: str, num_classes: int, path: Path) -> np.ndarray:
    array = table.column(column).combine_chunks()
    if array.type != pa.list_(pa.float32(), num_classes):
        raise MlaError(
            f"`{path}`: column `{column}` is {array.type}, not {num_classes} float32", Run(path.parent).start_again
        )
    return array.flatten().to_numpy(zero_copy_only=False).reshape(-1, num_classes)


def read_predictions(path: Path) -> Predictions:
    """Read a predictions file. Raises MlaError for one that is absent, damaged or none of ours."""
    run = Run(path.parent)
    again = run.start_again
    if not path.is_file():
        raise MlaError(f"no predictions at `{path}`", again)
    run.whole(path.name)
    try:
        table = pq.read_table(path, use_threads=False)
        return _predictions(table, json.loads((table.schema.metadata or {}).get(b"mla", b"{}")), path)
    except KeyError as error:
        raise MlaError(f"cannot read `{path}`: it lacks {error}", again) from error
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, pa.ArrowException) as error:
        raise MlaError(f"cannot read `{path}`: {error}", again) from error


def _check(table: pa.Table, facts: Any) -> None:
    """Raise ValueError or KeyError where types are not those that `write` gives."""
    if not isinstance(facts, dict):
        raise ValueError("its metadata are no mapping")
    for key in ("modalities", "classes"):
        names = facts[key]
        if not (isinstance(names, list) and names and all(isinstance(n, str) for n in names)):
            raise ValueError(f"`{key}` in its metadata are no list of names")
        if len(set(names)) < len(names):
            raise ValueError(f"`{key}` in its metadata name something twice")
    if not all(isinstance(value, dict) for value in [facts.get("splits", {}), *facts.get("splits", {}).values()]):
        raise ValueError("`splits` in its metadata are no mapping")
    for key in ("native_rule", "default_rule", "alone_readout"):
        if not isinstance(facts.get(key, ""), str):
            raise ValueError(f"`{key}` in its metadata is no text")
    wanted = dict.fromkeys(("id", "split", "group"), pa.string()) | {"label": pa.int32()}
    for name, kind in (wanted | {f"present.{m}": pa.bool_() for m in facts["modalities"]}).items():
        column = table.column(name)
        if column.type != kind or column.null_count:
            raise ValueError(f"column `{name}` is {column.type} with {column.null_count} gaps, not {kind}")


def _predictions(table: pa.Table, facts: dict[str, Any], path: Path) -> Predictions:
    _check(table, facts)
    modalities, classes = facts["modalities"], facts["classes"]
    alone = {f"logits.{m}" for m in modalities}
    mixed = {
        frozenset(filter(None, name.removeprefix("logits.").split("+"))): _matrix(table, name, len(classes), path)
        for name in table.column_names
        if name.startswith("logits.") and name not in alone and name != "logits.fused"
    }
    labels = table.column("label").to_numpy()
    if len(labels) and not -1 <= labels.min() <= labels.max() < len(classes):  # -1: rows without labels
        raise ValueError(f"label {labels.max()} is none of {len(classes)} classes")
    found = Predictions(
        ids=table.column("id").to_numpy(),
        splits=table.column("split").to_numpy(),
        groups=table.column("group").to_numpy(),
        labels=labels,
        modalities=modalities,
        present=np.stack([table.column(f"present.{m}").to_numpy() for m in modalities], axis=1),
        logits=np.stack([_matrix(table, f"logits.{m}", len(classes), path) for m in modalities], axis=1),
        subsets=mixed,
        facts=facts,
    )
    check_finite(found, path)
    return found


def check_finite(predictions: Predictions, path: Path) -> None:
    """Raise MlaError for logits that no metric is defined for: NaN or infinite where the modality is present."""
    broken = (predictions.present & ~np.isfinite(predictions.logits).all(-1)).any(1)
    for logits in predictions.subsets.values():
        broken |= ~np.isfinite(logits).all(-1)
    if broken.any():
        raise MlaError(
            f"`{path}`: {int(broken.sum())} of {len(broken)} samples have logits that are NaN or infinite in a present "
            f"modality (first: `{predictions.ids[broken.argmax()]}`)",
            "the run diverged; train again with a smaller `train.lr`",
        )


def mixed_logits(predictions: Predictions, present: np.ndarray) -> np.ndarray:
    """Look up, for every sample, the logits of the subset that is present: no model pass.

    present: bool (sample, modality), within what is really there. A stored subset serves all samples for which it
    comes to the same, as they lack the rest of it. Raises MlaError for a subset that was not stored.
    """
    bits = 1 << np.arange(present.shape[1])
    wanted, natural = present @ bits, predictions.present @ bits
    stored = {sum(1 << predictions.modalities.index(m) for m in s): x for s, x in predictions.subsets.items()}
    out = np.full((len(predictions), predictions.logits.shape[2]), np.nan, np.float32)
    both = wanted << present.shape[1] | natural
    for pair in np.unique(both[wanted > 0]):
        given, there = pair >> present.shape[1], pair & (1 << present.shape[1]) - 1
        code = given if given in stored else next((c for c in stored if c & there == given), None)
        if code is None:
            subset = [m for i, m in enumerate(predictions.modalities) if given >> i & 1]
            raise MlaError(
                f"the run stored no logits for `{'+'.join(subset)}` alone: its method mixes modalities inside",
                f"add `[{', '.join(subset)}]` to its recipe's `subsets` and train again, or use `--pattern subset`",
            )
        rows = both == pair
        out[rows] = stored[code][rows]
    return out


def scored_subsets(predictions: Predictions, rules: Sequence[str]) -> list[tuple[str, ...]]:
    """The subsets that pattern `subset` scores, small ones first: all, or those that a mixing method stored."""
    every = subsets(predictions.modalities)
    if not predictions.subsets or "native" not in rules:
        return every
    return [subset for subset in every if frozenset(subset) in predictions.subsets]


def join(parts: Mapping[str, Predictions]) -> Predictions:
    """Several splits in one table, in the order given."""
    every = list(parts.values())
    first = every[0]

    def rows(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in every])

    return replace(
        first,
        ids=rows("ids"),
        splits=rows("splits"),
        groups=rows("groups"),
        labels=rows("labels"),
        present=rows("present"),
        logits=rows("logits"),
        subsets={key: np.concatenate([part.subsets[key] for part in every]) for key in first.subsets},
    )
