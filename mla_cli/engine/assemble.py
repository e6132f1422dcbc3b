"""The end of `mla prepare`: the sidecars of all shards -> index and manifest -> a store in its place."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mla_cli.data.features import row_dtype, row_shape, token_count
from mla_cli.data.hub import maker_digest
from mla_cli.data.manifest import Manifest, Problem
from mla_cli.data.store import FORMAT, rows_per_shard
from mla_cli.engine.packages import versions
from mla_cli.engine.shards import HASHED, ShardTask, sidecar
from mla_cli.files import json_text, read_json, sha256, sync_folder, unwritable, whole_file, write_sealed, write_text
from mla_cli.specs import FeatureSpec

TRIES = 50  # to move a store into its place, which takes two renames


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
        if (digest := maker_digest(spec)) is not None:  # a tokenizer or extractor of a model: what it was
            modalities[modality]["made_by"] = digest
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
    content["files"] = {n: sha256(partial / n) for n in ("classes.txt", "problems.csv") if (partial / n).is_file()}
    write_sealed(partial / "manifest.json", content)
    move_into_place(partial, path)


def move_into_place(partial: Path, path: Path) -> None:
    """Replace the store by a complete one. Readers that have the old one open keep reading it.

    Of several processes that built the same name from other specs, each moves its own: the last one's stays. Raises
    MlaError where it cannot be moved.
    """
    left = [*partial.glob("*/*.json"), *partial.rglob(".*.tmp")]  # sidecars, and what killed processes left
    for file in left:
        file.unlink()
    for folder in {file.parent for file in left}:
        sync_folder(folder)
    old = path.with_name(f".{path.name}.old")
    for tries_left in reversed(range(TRIES)):
        shutil.rmtree(old, ignore_errors=True)
        try:
            if path.exists():
                os.replace(path, old)
            os.replace(partial, path)
            break
        except OSError as error:  # another process puts its own there at this moment
            if tries_left == 0:
                raise unwritable(path, error) from error
    sync_folder(path.parent)  # or a power loss could bring the old store back, with files gone
    shutil.rmtree(old, ignore_errors=True)
