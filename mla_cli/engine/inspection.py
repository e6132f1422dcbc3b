"""Look before building (`mla prepare --check`, `--dry-run`) and report the splits of what was built."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mla_cli import registry
from mla_cli.data.features import row_dtype, row_shape
from mla_cli.data.leakage import leakage_lines, leaks_into_test
from mla_cli.data.manifest import Manifest, Problem
from mla_cli.data.store import Store
from mla_cli.engine.data import complete, leakage, load_data
from mla_cli.engine.events import Note, Progress, Steps
from mla_cli.engine.executor import LOCAL
from mla_cli.engine.prepare import feature_specs, raw_root, resolved, scan_raw
from mla_cli.engine.reading import FILE_TIMEOUT, Batch, Trial, run_batches
from mla_cli.engine.tasks import Executor
from mla_cli.errors import MlaError
from mla_cli.files import real_path, sealed, write_json_if_other
from mla_cli.schema import Recipe
from mla_cli.specs import FeatureSpec

CHECK_WORK = "mla_cli.engine.reading:check_batch"
CHECK_ROWS = 64  # samples that a worker checks at a time
TRIED = 6  # samples of each modality that are timed for an estimate; the first one does not count


@dataclass
class Inspection:
    """What lies in a raw folder and what would be built from it.

    bytes_of: size of each modality's shards. free: bytes free where they would go. seconds_of: one worker's time for
    one sample of each modality, None where no sample that was tried could be read. workers: who would share the work.
    """

    dataset: str
    root: Path
    store: Path
    samples: int
    present: dict[str, int]
    classes: dict[str, int]
    bytes_of: dict[str, int]
    shapes: dict[str, str]
    problems: list[Problem] = field(default_factory=list)
    checked: bool = False
    free: int = 0
    seconds_of: dict[str, float | None] = field(default_factory=dict)
    workers: int = 1


def inspect(
    name: str,
    data_dir: Path,
    recipe: Recipe,
    root: Path | None,
    decode: bool,
    scan_options: dict[str, Any] | None = None,
    executor: Executor = LOCAL,
    file_timeout: float = FILE_TIMEOUT,
) -> Steps[Inspection]:
    """Scan a raw folder; with `decode` also open every file, else time a few of them.

    The generator's value is an `Inspection`, its problems in the order of `problems.csv`.
    """
    where = raw_root(name, root)
    yield Note(f"scanning {where}")
    manifest = scan_raw(name, where, scan_options)
    for note in manifest.notes:
        yield Note(note)
    specs = resolved(feature_specs(manifest, recipe), manifest, where)
    rows = manifest.rows
    present = {m: int(rows[f"ref.{m}"].notna().sum()) for m in manifest.modalities}
    shapes = {m: row_shape(spec) for m, spec in specs.items()}
    sizes = {m: present[m] * int(np.prod(shapes[m])) * np.dtype(row_dtype(specs[m])).itemsize for m in specs}
    report = Inspection(
        name,
        where,
        data_dir / recipe.store,
        len(rows),
        present,
        rows["label"].value_counts().reindex(list(manifest.classes), fill_value=0).to_dict(),
        sizes,
        {m: f"{np.dtype(row_dtype(specs[m]))} {shapes[m]}" for m in specs},
        list(manifest.problems),
        decode,
    )
    report.workers = executor.places().count
    if decode:
        report.problems += yield from check_all(manifest, where, executor, file_timeout)
    else:
        report.free = shutil.disk_usage(existing(report.store)).free
        report.seconds_of = yield from time_samples(manifest, specs, where, executor, file_timeout)
    report.problems.sort(key=lambda p: (p.kind, p.id, p.modality, p.file))
    return report


def existing(path: Path) -> Path:
    """The nearest folder above a path that is there."""
    return next(folder for folder in real_path(path).parents if folder.is_dir())


def references(manifest: Manifest, modality: str) -> list[tuple[str, str]]:
    """(sample id, reference) of every sample that has a modality."""
    has = manifest.rows[manifest.rows[f"ref.{modality}"].notna()]
    return list(zip(has["id"], has[f"ref.{modality}"], strict=True))


def check_all(manifest: Manifest, root: Path, executor: Executor, limit: float) -> Steps[list[Problem]]:
    """Open every file in worker processes; the value is what cannot be used."""
    batches = []
    for modality, kind in manifest.modalities.items():
        refs = references(manifest, modality)
        for start in range(0, len(refs), CHECK_ROWS):
            some = refs[start : start + CHECK_ROWS]
            batches.append(Batch(modality, kind, str(root), some, manifest.allow_outside))
    total = sum(len(batch.refs) for batch in batches)
    yield Progress("checked", 0, total)
    found = yield from run_batches(CHECK_WORK, batches, executor, limit, "checked", 0, total)
    return [Problem(*fields) for problems in found for fields in problems]


def time_samples(
    manifest: Manifest, specs: dict[str, FeatureSpec], root: Path, executor: Executor, limit: float
) -> Steps[dict[str, float | None]]:
    """Seconds for the features of one sample of each modality: the mean of some from all over the data set."""
    trials = []
    for modality, kind in manifest.modalities.items():
        refs = references(manifest, modality)
        some = [refs[i] for i in np.unique(np.linspace(0, len(refs) - 1, min(len(refs), TRIED)).astype(int))]
        trials.append(Trial(modality, kind, str(root), some, manifest.allow_outside, spec=specs[modality]))
    total = sum(len(trial.refs) for trial in trials)
    taken = yield from run_batches("mla_cli.engine.reading:time_batch", trials, executor, limit, "tried", 0, total)
    means = [sum(seconds) / len(seconds) if seconds else None for seconds in taken]
    return {trial.modality: mean for trial, mean in zip(trials, means, strict=True)}


def split_report(store_path: Path, recipe: Recipe) -> dict[str, Any]:
    """Sizes of the splits under the recipe's protocol, and its leakage report; that of every protocol is stored."""
    store = Store.open(store_path)
    recipe = complete(recipe, store)
    data = load_data(recipe, store)
    reports = leakage_of_protocols(store, recipe) | {data.protocol: data.facts["leakage"]}
    about = {"split_seed": recipe.dataset.split_seed, "fold": recipe.dataset.fold}
    write_json_if_other(store_path / "leakage.json", sealed({**about, "protocols": reports}))
    others = {p: leaks_into_test(report) for p, report in reports.items() if p != data.protocol and "leaks" in report}
    return {
        "protocol": data.protocol,
        "splits": {split: len(samples) for split, samples in data.splits.items()},
        "distinct": {split: samples.distinct for split, samples in data.splits.items()},
        "pair_seed": data.facts.get("pair_seed"),
        "lines": [
            *data.facts["split_notes"],
            *leakage_lines(data.facts["leakage"]),
            *(f"protocol {p} would leak: {lines[0]}" for p, lines in others.items() if lines),
        ],
    }


def leakage_of_protocols(store: Store, recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Protocol -> its leakage report, or why it cannot be used here. Lists are not there to be reported on.

    The fold is the recipe's where a protocol has it, else the first.
    """
    module, dataset = registry.load("datasets", store.manifest["dataset"]), recipe.dataset
    reports: dict[str, dict[str, Any]] = {}
    for protocol in (p for p in module.PROTOCOLS if p != "file"):
        for fold in dict.fromkeys((dataset.fold, 0)):
            try:
                side = module.split(store.index, protocol, dataset.split_seed, fold)
            except MlaError as error:
                reports[protocol] = {"error": error.message}
                continue
            reports[protocol] = leakage(store.index, side, dataset.modalities or store.modalities)
            break
    return reports
