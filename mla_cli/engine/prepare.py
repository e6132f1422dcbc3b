"""`mla prepare`: raw folder -> manifest -> feature store. Verify, describe, compute; each step can be repeated safely.

The store is built beside its place, in `.NAME-HASH.partial`, shard by shard; a finished shard is never redone. It is
moved into place when it is whole, so an interrupted `prepare` leaves an older store untouched.
"""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mla_cli import registry
from mla_cli.data.features import compute, row_dtype, row_shape, token_count
from mla_cli.data.manifest import Manifest, Problem, counts_of_bad, problems_table
from mla_cli.data.media import BadMedia
from mla_cli.data.store import FORMAT, Store, rows_per_shard
from mla_cli.engine.events import Note, Steps
from mla_cli.engine.reading import FILE_TIMEOUT
from mla_cli.engine.run import remember, versions
from mla_cli.engine.shards import HASHED, ShardTask, build_shards, shard_tasks, sidecar
from mla_cli.errors import MlaError
from mla_cli.files import json_text, make_folder, read_json, sha256, whole_file, write_json, write_text
from mla_cli.schema import FEATURES_OF_KIND, SPEC_OF_KIND, FeatureSpec, Recipe, Section


@dataclass
class Prepared:
    """What `prepare` did."""

    path: Path
    dataset: str
    built: bool
    counts: dict[str, int]
    problems: list[Problem] = field(default_factory=list)
    attribution: str = ""


def raw_root(name: str, root: Path | None) -> Path:
    """Where the raw data lie: --root, $MLA_RAW/NAME, raw/NAME, or inside the package. Raises MlaError with the tree."""
    module = registry.load("datasets", name)
    if root is None and getattr(module, "BUILT_IN", False):
        return registry.PACKAGE / "demo" / name
    places = [root] if root else [Path(os.environ["MLA_RAW"]) / name] if "MLA_RAW" in os.environ else []
    for place in [*places, *([] if root else [Path("raw") / name])]:
        if place.is_dir():
            return place
    wanted = (
        f"`{root}` is not a folder" if root else f"no raw data for `{name}`: neither $MLA_RAW/{name} nor raw/{name}"
    )
    raise MlaError(wanted, f"pass `--root DIR`; expected there:\n{module.TREE.rstrip()}\n{module.SOURCE.strip()}")


def scan_raw(name: str, root: Path, options: dict[str, Any] | None) -> Manifest:
    """Scan with the data set's own options; `allow_outside` goes with any, for trees with links to other disks."""
    own = dict(options or {})
    outside = own.get("allow_outside", False)
    if name != "table":
        own.pop("allow_outside", None)
    manifest: Manifest = registry.load("datasets", name).scan(root, **own)
    manifest.allow_outside = outside
    return manifest


def refuse_to_replace(path: Path, root: Path) -> None:
    """Raise MlaError where the store would take the place of the raw data, or of anything but a store."""
    elsewhere = "prepare into another place with `--data-dir DIR`, or under another name with --set dataset.store=NAME"
    if root.resolve().is_relative_to(path.resolve()):
        raise MlaError(f"the raw data `{root}` lie where the prepared data `{path}` would go", elsewhere)
    is_store = (path / "manifest.json").is_file() and (path / "index.parquet").is_file()
    if path.exists() and not is_store and not (path.is_dir() and not any(path.iterdir())):
        raise MlaError(f"`{path}` is not a prepared data set, and is not overwritten", elsewhere)


def feature_specs(manifest: Manifest, recipe: Recipe | None) -> dict[str, FeatureSpec]:
    """The spec of every modality: the recipe's, else the default of the modality's kind."""
    specs: dict[str, FeatureSpec] = {}
    for modality in recipe.features if recipe else ():
        if modality not in manifest.modalities:
            hint = registry.did_you_mean(modality, list(manifest.modalities))
            raise MlaError(f"`features.{modality}`: the data have no modality `{modality}`", hint)
    for modality, kind in manifest.modalities.items():
        allowed = FEATURES_OF_KIND[kind]
        spec = recipe.features.get(modality) if recipe else None
        if spec is not None and spec.kind not in allowed:
            raise MlaError(
                f"`features.{modality}.kind`: `{spec.kind}` does not fit {kind} data", f"use {' or '.join(allowed)}"
            )
        specs[modality] = spec or SPEC_OF_KIND[allowed[0]]()  # type: ignore[assignment]
    return specs


def same_spec(wanted: Section, stored: Section) -> bool:
    """Equal, or differing only where the wanted one leaves a value to the data (a vector's width)."""
    have = stored.model_dump()
    return all(value is None or have.get(key) == value for key, value in wanted.model_dump().items()) and type(
        wanted
    ) is type(stored)


def prepare(
    name: str,
    data_dir: Path,
    recipe: Recipe | None = None,
    root: Path | None = None,
    store: str | None = None,
    force: bool = False,
    workers: int | None = None,
    max_bad: float = 0.01,
    scan_options: dict[str, Any] | None = None,
    file_timeout: float = FILE_TIMEOUT,
) -> Steps[Prepared]:
    """Make (or find already made) the store `data_dir/STORE`; the generator's value is a `Prepared`.

    max_bad: largest share of samples that may be unusable. scan_options: keywords of the data set's own `scan`, such as
    a table's path. file_timeout: seconds after which a sample that is still being read becomes a problem.
    Raises MlaError past `max_bad`, keeping the shards made.
    """
    module = registry.load("datasets", name)
    root = raw_root(name, root)
    path = data_dir / (store or (recipe.store if recipe else name))
    refuse_to_replace(path, root)
    yield Note(f"scanning {root}")
    manifest = scan_raw(name, root, scan_options)
    for note in manifest.notes:
        yield Note(note)
    if manifest.rows.empty:
        reasons = "".join(f" (first problem: `{p.file}`: {p.reason})" for p in manifest.problems[:1])
        raise MlaError(f"no usable sample under `{root}`{reasons}", f"expected there:\n{module.TREE.rstrip()}")
    specs = resolved(feature_specs(manifest, recipe), manifest, root)
    request = request_hash(manifest, specs)
    if not force and (path / "manifest.json").is_file():
        existing = Store.open(path)
        if existing.manifest["request"] == request:
            remember(data_dir, path.name)
            return Prepared(path, name, False, existing.manifest["counts"], [], module.ATTRIBUTION)
        yield Note(f"{path} was made from other data or another feature spec: building it again")
    partial = path.with_name(f".{path.name}-{request[:12]}.partial")
    if force:
        shutil.rmtree(partial, ignore_errors=True)
    make_folder(partial)
    if (partial / "manifest.json").is_file():  # killed between the last write and the move
        move_into_place(partial, path)
        remember(data_dir, path.name)
        return Prepared(path, name, True, Store.open(path).manifest["counts"], [], module.ATTRIBUTION)
    tasks = shard_tasks(manifest, specs, root, partial)
    for leftover in partial.rglob(".*.tmp"):  # of killed processes; they would fill a disk
        leftover.unlink(missing_ok=True)
    yield from build_shards(tasks, workers, getattr(module, "BUILT_IN", False), file_timeout)
    problems, index, modalities = assemble_index(manifest, specs, tasks, partial)
    bad, total = counts_of_bad(problems, manifest)
    (partial / "problems.csv").unlink(missing_ok=True)  # of an earlier try
    if problems:
        with whole_file(partial / "problems.csv") as file:
            problems_table(problems).to_csv(file, index=False)
        kinds = pd.Series([p.kind for p in problems]).value_counts().to_dict()
        listed = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        yield Note(f"{bad} of {total} samples cannot be used ({listed})", warning=True)
        if bad > max_bad * total or not len(index):
            first = problems[0]
            raise MlaError(
                f"{bad} of {total} samples of `{name}` are bad, more than {max_bad:.1%} "
                f"(first: `{first.file}`: {first.reason})",
                f"see `{partial / 'problems.csv'}`; mend them, or accept them with `--max-bad 1`; "
                "what was built is kept",
            )
    finish_store(partial, path, name, manifest, index, modalities, request)
    remember(data_dir, path.name)
    counts = read_json(path / "manifest.json")["counts"]
    return Prepared(path, name, True, counts, problems, module.ATTRIBUTION)


def resolved(specs: dict[str, FeatureSpec], manifest: Manifest, root: Path) -> dict[str, FeatureSpec]:
    """Fill in what only the data know: the width of vectors, from the first readable one."""
    for modality, spec in specs.items():
        if spec.kind != "vector" or spec.width is not None:
            continue
        for ref in manifest.rows[f"ref.{modality}"].dropna():
            try:
                feature = compute(spec, manifest.modalities[modality], root, ref, manifest.allow_outside)
            except BadMedia:
                continue
            specs[modality] = spec.model_copy(update={"width": feature.array.shape[-1]})
            break
    return specs


def request_hash(manifest: Manifest, specs: dict[str, FeatureSpec]) -> str:
    """What was asked for: the rows of the manifest and the feature specs."""
    content = [manifest.fingerprint(), {m: spec.model_dump() for m, spec in specs.items()}, FORMAT]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def assemble_index(
    manifest: Manifest, specs: dict[str, FeatureSpec], tasks: list[ShardTask], partial: Path
) -> tuple[list[Problem], pd.DataFrame, dict[str, Any]]:
    """Join the sidecars: all problems, the index of the usable samples, and what `manifest.json` says per modality."""
    problems = list(manifest.problems)
    rows = manifest.rows
    columns: dict[str, Any] = {}
    modalities: dict[str, Any] = {}
    number_of = {sample: i for i, sample in enumerate(rows["id"])}
    for modality, spec in specs.items():
        size = rows_per_shard(row_shape(spec), row_dtype(spec), int(rows[f"ref.{modality}"].notna().sum()))
        row = np.full(len(rows), -1, np.int64)
        length, count = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
        total: list[list[float]] = [[0.0]] * len(rows)
        squares: list[list[float]] = [[0.0]] * len(rows)
        hashes = np.full(len(rows), None, object)
        checksums, made = [], 0
        for task in (t for t in tasks if t.modality == modality):
            side = read_json(sidecar(task))
            checksums.append(side["sha256"])
            for offset, ((sample, _), fact) in enumerate(zip(task.refs, side["rows"], strict=True)):
                if "problem" in fact:
                    problems.append(Problem(*fact["problem"]))
                    continue
                i = number_of[sample]
                row[i] = task.number * size + offset
                length[i], count[i], hashes[i] = fact["length"], fact["count"], fact.get("hash")
                total[i], squares[i] = fact["sum"], fact["sum_squares"]
            made += len(task.refs)
        columns |= {
            f"row.{modality}": row,
            f"length.{modality}": length,
            f"sum.{modality}": total,
            f"sum_squares.{modality}": squares,
            f"count.{modality}": count,
        }
        if manifest.modalities[modality] in HASHED:
            columns[f"hash.{modality}"] = hashes
        modalities[modality] = {
            "raw_kind": manifest.modalities[modality],
            "spec": spec.model_dump(),
            "shape": list(row_shape(spec)),
            "dtype": str(np.dtype(row_dtype(spec))),
            "rows": made,
            "rows_per_shard": size,
            "sha256": checksums,
            "tokens": token_count(spec) if spec.kind == "text" else None,
        }
    # one kind of problem concerns rows that are not in the table: the first of two equal ids stays
    bad = {p.id for p in problems if p.kind != "duplicate_id"}
    index = pd.concat([rows, pd.DataFrame(columns, index=rows.index)], axis=1)
    return problems, index[~index["id"].isin(bad)].reset_index(drop=True), modalities


def finish_store(
    partial: Path,
    path: Path,
    name: str,
    manifest: Manifest,
    index: pd.DataFrame,
    modalities: dict[str, Any],
    request: str,
) -> None:
    """Write index and manifest, drop the sidecars, and move the store into place."""
    with whole_file(partial / "index.parquet") as file:
        index.to_parquet(file, index=False)
    content: dict[str, Any] = {
        "format": FORMAT,
        "dataset": name,
        "request": request,
        "classes": list(manifest.classes),
        "modalities": modalities,
        "order": list(manifest.modalities),  # JSON objects are written sorted; the order of training is not
        "counts": {"samples": len(index)} | {m: int((index[f"row.{m}"] >= 0).sum()) for m in modalities},
        "versions": versions(("mla-cli", "numpy", "pillow", "av", "torch", "torchaudio")),
        "index_sha256": sha256(partial / "index.parquet"),
    }
    facts = {key: content[key] for key in ("dataset", "classes", "modalities", "counts")}
    # ids, labels, groups and splits count; a rebuilt parquet file of the same rows does not change the fingerprint
    table = index[["id", "label", "group", "split"]].to_csv(index=False)
    content["fingerprint"] = hashlib.sha256((json_text(facts) + table).encode()).hexdigest()
    write_text(partial / "classes.txt", "".join(f"{c}\n" for c in manifest.classes))
    write_json(partial / "manifest.json", content)
    move_into_place(partial, path)


def move_into_place(partial: Path, path: Path) -> None:
    """Replace the store by a complete one. Readers that have the old one open keep reading it."""
    for file in [*partial.glob("*/*.json"), *partial.rglob(".*.tmp")]:  # sidecars, and what killed processes left
        file.unlink()
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        os.replace(path, old)
    os.replace(partial, path)
    shutil.rmtree(old, ignore_errors=True)
