"""The shards of a feature store: which there are, and making those that are not there yet, in parallel.

Beside each shard lies a small JSON file, its sidecar, with what `index.parquet` will say of its rows.
"""

import hashlib
import io
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from mla_cli.data.features import compute, row_dtype, row_shape
from mla_cli.data.media import BadMedia
from mla_cli.data.store import moments, rows_per_shard
from mla_cli.engine.events import Event, Progress
from mla_cli.engine.executor import LOCAL
from mla_cli.engine.reading import FILE_TIMEOUT, UNTRUSTED, Batch, run_batches
from mla_cli.engine.tasks import Executor, Folders
from mla_cli.files import read_json, sha256, whole_file, write_json
from mla_cli.specs import FeatureSpec

if TYPE_CHECKING:  # pandas would take a third of a worker's start
    from mla_cli.data.manifest import Manifest

WORK = "mla_cli.engine.shards:shard_steps"  # what worker processes do
PARALLEL_SHARDS = 4  # below this, starting worker processes costs more than it saves
SLOWEST_FIRST = ("video", "audio", "image")  # so that no worker is left alone with a slow shard at the end
# Whose contents are hashed, to find equal ones: lines of text and rows of coarse vectors are equal by chance.
HASHED = ("image", "audio", "video", "text_file")
HASH_BYTES = 8  # among a million different contents the chance that any two hashes agree is 1 in 37 million


@dataclass(frozen=True, kw_only=True)
class ShardTask(Batch):
    """One shard to make; `refs` are in row order."""

    folder: str
    number: int
    spec: FeatureSpec

    def folders(self) -> Folders:
        return Folders(self.root, writes=self.folder, made=(f"{self.number:05d}.npy", f"{self.number:05d}.json"))

    def moved(self, reads: Path, writes: Path) -> "ShardTask":
        return replace(self, folder=str(writes))


def shard_tasks(manifest: "Manifest", specs: dict[str, FeatureSpec], root: Path, partial: Path) -> list[ShardTask]:
    """All shards, whether made already or not: rows in manifest order, one per sample that has the modality."""
    tasks = []
    for modality, spec in specs.items():
        has = manifest.rows[manifest.rows[f"ref.{modality}"].notna()]
        pairs = list(zip(has["id"], has[f"ref.{modality}"], strict=True))
        size = rows_per_shard(row_shape(spec), row_dtype(spec), len(pairs))
        for number, start in enumerate(range(0, len(pairs), size)):
            task = ShardTask(
                modality=modality,
                kind=manifest.modalities[modality],
                root=str(root),
                refs=pairs[start : start + size],
                allow_outside=manifest.allow_outside,
                folder=str(partial / modality),
                number=number,
                spec=spec,
            )
            tasks.append(task)
    return tasks


def build_shards(
    tasks: list[ShardTask], executor: Executor = LOCAL, trusted: bool = False, file_timeout: float = FILE_TIMEOUT
) -> Iterator[Event]:
    """Make the shards that are not whole yet, in the executor's workers where there are many.

    trusted: files that need no time limit and crash no decoder, so that few of them are read by this process.
    """
    missing = [task for task in tasks if not is_whole(task)]
    done, total = sum(len(t.refs) for t in tasks) - sum(len(t.refs) for t in missing), sum(len(t.refs) for t in tasks)
    yield Progress("features", done, total)
    if not missing:
        return
    harmless = trusted or not any(task.kind in UNTRUSTED for task in missing)
    if harmless and (len(missing) < PARALLEL_SHARDS or executor.places().count == 1):
        for task in missing:
            make_shard(task)
            done += len(task.refs)
            yield Progress("features", done, total)
        return
    speed = {kind: i for i, kind in enumerate(SLOWEST_FIRST)}
    # Round the modalities: each worker starts with another one and stays with it (audio alone imports torch).
    place = {id(task): i for m in {t.modality for t in missing} for i, task in enumerate(of(missing, m))}
    missing.sort(key=lambda task: (place[id(task)], speed.get(task.kind, len(speed))))
    yield from run_batches(WORK, missing, executor, file_timeout, "features", done, total)


def of(tasks: list[ShardTask], modality: str) -> list[ShardTask]:
    """The tasks of one modality."""
    return [task for task in tasks if task.modality == modality]


def sidecar(task: ShardTask) -> Path:
    """The small file beside a shard that says what is in it; written after the shard, so it means `complete`."""
    return Path(task.folder) / f"{task.number:05d}.json"


def is_whole(task: ShardTask) -> bool:
    """Whether a shard is made and every sample of it was read; bad ones may have been mended since."""
    path = sidecar(task)
    return path.is_file() and not any("problem" in fact for fact in read_json(path)["rows"])


def make_shard(task: ShardTask) -> None:
    """Make one shard in this process."""
    for _ in shard_steps(task):
        pass


def shard_steps(task: ShardTask) -> Generator[int | None, None, None]:
    """Decode and featurise one shard, or only the samples of it that could not be read the last time.

    A sample that cannot be read leaves a row of zeros that nothing refers to. Yields rows, see `Batch.told`.
    """
    spec = task.spec
    target = Path(task.folder) / f"{task.number:05d}.npy"
    shard = np.zeros((len(task.refs), *row_shape(spec)), row_dtype(spec))
    facts: list[dict[str, Any]] = [{"problem": None} for _ in task.refs]
    if sidecar(task).is_file():
        shard, facts = np.load(target, allow_pickle=False), read_json(sidecar(task))["rows"]
    for row, tell in task.told([row for row, fact in enumerate(facts) if "problem" in fact]):
        if tell is not None:
            yield tell
        try:
            feature = task.read(row, compute, spec)
        except BadMedia as bad:
            facts[row] = {"problem": task.problem(row, bad)}
            continue
        shard[row] = feature.array
        total, squares, count = moments(spec.kind, shard[row], feature.valid)
        facts[row] = {"length": feature.valid, "sum": total, "sum_squares": squares, "count": count}
        if task.kind in HASHED:
            facts[row]["hash"] = hashlib.blake2b(shard[row].tobytes(), digest_size=HASH_BYTES).hexdigest()
    yield None
    with whole_file(target) as out:
        write_array(out, shard)
    write_json(sidecar(task), {"sha256": sha256(target), "rows": facts})


def write_array(out: BinaryIO, array: np.ndarray) -> None:
    """Write what `np.save` writes; NumPy's own writing of files forgets why it failed, such as a full disk."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    out.write(header.getvalue())
    out.write(np.ascontiguousarray(array).data.cast("B"))
