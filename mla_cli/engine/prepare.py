"""`mla prepare`: raw folder -> manifest -> feature store. Verify, describe, compute; each step can be repeated safely.

The store is built beside its place, in `.NAME-HASH.partial`, shard by shard; a finished shard is never redone. It is
moved into place when it is whole, so an interrupted `prepare` leaves an older store untouched.
"""

import hashlib
import json
import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from mla_cli import registry
from mla_cli.data.features import compute
from mla_cli.data.hub import maker_digest
from mla_cli.data.manifest import Manifest, Problem, counts_of_bad, problems_table
from mla_cli.data.media import BadMedia
from mla_cli.data.store import FORMAT, Store, is_prepared
from mla_cli.engine.assemble import assemble_index, finish_store, move_into_place
from mla_cli.engine.events import Note, Steps
from mla_cli.engine.executor import LOCAL
from mla_cli.engine.latest import remember
from mla_cli.engine.reading import FILE_TIMEOUT
from mla_cli.engine.shards import build_shards, shard_tasks
from mla_cli.engine.tasks import Executor
from mla_cli.errors import MlaError
from mla_cli.files import empty_folder, real_path, whole_file
from mla_cli.locks import FolderLock
from mla_cli.markup import formula_free
from mla_cli.schema import Recipe
from mla_cli.specs import FEATURES_OF_KIND, SPEC_OF_KIND, FeatureSpec

LIST_ALL = "mend them; add `--check` to the same command to list all that cannot be read"
LOOK_AGAIN = 0.2  # seconds between two looks whether another process has ended


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
    if real_path(root).is_relative_to(real_path(path)):
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


def prepare(
    name: str,
    data_dir: Path,
    recipe: Recipe | None = None,
    root: Path | None = None,
    store: str | None = None,
    force: bool = False,
    executor: Executor = LOCAL,
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
    plan = Plan(name, root, path, manifest, specs, request_hash(manifest, specs))
    stored = None if force else request_of(path)
    if stored == plan.request:
        return found_ready(plan)
    if stored is not None:
        yield Note(f"{path} was made from other data or another feature spec: building it again")
    lock = FolderLock(plan.partial)
    if not lock.taken():
        yield Note(f"another process is building {path}{lock.told()}: {lock.waiting()}")
        while not lock.taken():
            time.sleep(LOOK_AGAIN)
    with lock:
        if not force and request_of(path) == plan.request:  # another process has made it since we looked
            with suppress(OSError):  # not empty: of a `--force` that was interrupted
                plan.partial.rmdir()  # made for the lock alone
            return found_ready(plan)
        if lock.ended is not None:
            yield Note(f"{lock.taken_over()}: going on with what it made")
        return (yield from build(plan, force, executor, max_bad, file_timeout))


@dataclass(frozen=True)
class Plan:
    """What is built from what; `request` is its hash, `partial` the folder where it grows."""

    name: str
    root: Path
    path: Path
    manifest: Manifest
    specs: dict[str, FeatureSpec]
    request: str

    @property
    def partial(self) -> Path:
        return self.path.with_name(f".{self.path.name}-{self.request[:12]}.partial")


def build(plan: Plan, force: bool, executor: Executor, max_bad: float, file_timeout: float) -> Steps[Prepared]:
    """Make the store, going on with what is in `plan.partial`, and move it into place; see `prepare`."""
    name, path, partial, manifest, specs = plan.name, plan.path, plan.partial, plan.manifest, plan.specs
    if force:
        empty_folder(partial)
    if (partial / "manifest.json").is_file():  # killed between the last write and the move
        move_into_place(partial, path)
        return replace(found_ready(plan), built=True)
    tasks = shard_tasks(manifest, specs, plan.root, partial)
    for leftover in list(partial.rglob(".*.tmp")):  # of killed processes; they would fill a disk
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
    trusted = getattr(registry.load("datasets", name), "BUILT_IN", False)
    yield from build_shards(tasks, executor, trusted, file_timeout)
    problems, index, modalities = assemble_index(manifest, specs, tasks, partial)
    bad, total = counts_of_bad(problems, manifest)
    (partial / "problems.csv").unlink(missing_ok=True)  # of an earlier try
    if problems:
        with whole_file(partial / "problems.csv") as file:
            problems_table(problems).map(formula_free).to_csv(file, index=False)  # for a spreadsheet, too
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
    finish_store(partial, path, name, manifest, index, modalities, plan.request)
    return replace(found_ready(plan), built=True, problems=problems)


def request_of(path: Path) -> str | None:
    """What the store at a place was asked to be; None where there is none."""
    return Store.open(path).manifest["request"] if is_prepared(path) else None


def found_ready(plan: Plan) -> Prepared:
    """The store that is there; the commands that follow take it."""
    remember(plan.path.parent, plan.path.name)
    counts, module = Store.open(plan.path).manifest["counts"], registry.load("datasets", plan.name)
    return Prepared(plan.path, plan.name, False, counts, [], module.ATTRIBUTION)


def resolved(specs: dict[str, FeatureSpec], manifest: Manifest, root: Path) -> dict[str, FeatureSpec]:
    """Fill in what only the data know: the width of vectors, from the first readable one."""
    for modality, spec in specs.items():
        if spec.kind != "vector" or spec.width is not None:
            continue
        first = None
        for ref in manifest.rows[f"ref.{modality}"].dropna():
            try:
                feature = compute(spec, manifest.modalities[modality], root, ref, manifest.allow_outside)
            except BadMedia as bad:
                first = first or MlaError(
                    f"no row of `{modality}` can be read (first: `{ref}`: {bad.reason})", LIST_ALL
                )
                continue
            specs[modality] = spec.model_copy(update={"width": feature.array.shape[-1]})
            break
        else:
            if first is not None:
                raise first
    return specs


def request_hash(manifest: Manifest, specs: dict[str, FeatureSpec]) -> str:
    """What was asked for: the rows of the manifest, the feature specs, and the tokenizers and extractors they name."""
    content: list[Any] = [manifest.fingerprint(), {m: spec.model_dump() for m, spec in specs.items()}, FORMAT]
    if made := {m: digest for m, spec in specs.items() if (digest := maker_digest(spec)) is not None}:
        content.append(made)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
