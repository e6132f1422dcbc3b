"""`mla check` on runs, ablations, recipes and locks."""

import json
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any

from mla_cli.engine.check_files import Examined, Reader
from mla_cli.engine.events import Steps
from mla_cli.engine.findings import OK, PROBLEM, WARNING, Finding
from mla_cli.engine.going_on import train_command
from mla_cli.engine.integrity import changed_since
from mla_cli.engine.run import FILES, Run
from mla_cli.engine.stored_grids import AGAIN, runs_in_order, stored_grid
from mla_cli.errors import MlaError
from mla_cli.holders import read_holder
from mla_cli.locks import FolderLock
from mla_cli.recipe import load_recipe

REPORTS = ("results.md",)  # written after the run has finished, by the commands
NEEDED = ("recipe.yaml", "history.jsonl", "predictions.parquet", "results.csv")  # of a finished run


def check_run(path: Path, reader: Reader, data_dir: Path) -> Steps[list[Finding]]:
    """Every file of a run that has a checksum, and what has changed since it was trained."""
    run = Run(path)
    seen = Examined("run", reader, lambda: run.start_again)
    info: dict[str, Any] | None = {}
    if (path / "run.json").is_file():
        info = seen.sealed(path / "run.json")
    if info is None:
        return seen.report(path, "a run")
    state = info.get("state", "absent")
    lock = FolderLock.held(path)
    if lock is not None and state != "finished":
        return [Finding("run", str(path), OK, f"is being trained{lock.told()}")]
    yield from check_listed(run, info, seen)
    yield from check_checkpoints(run, info, seen)
    for name in ("history.jsonl", "timing.jsonl"):
        if name not in info.get("files", {}):
            with suppress(UnicodeError):
                note_error(seen, path / name, lambda name=name: run.history(name))
    if state == "finished":
        note_error(seen, run.recipe_file, run.recipe)
        predictions_fit(run, info, seen)
    elif state == "absent" and any((path / name).is_file() for name in NEEDED[1:]):
        seen.problem(path / "run.json", "is missing")
    elif state == "running" or state == "absent":
        text = "was interrupted" if state == "running" else "was interrupted before its first epoch"
        seen.add(path, WARNING, text, f"go on with `{train_command(run.path, info, '--resume')}`")
    elif state == "failed":
        text = f"failed: {info.get('error', 'no reason is recorded')}"
        seen.add(path, WARNING, text, f"try again with `{train_command(run.path, info, '--resume')}`")
    else:
        seen.problem(path / "run.json", f"has state `{state}`")
    with suppress(MlaError):  # said already
        for text in changed_since(run, data_dir):
            seen.add(path, WARNING, text, "")
    seen.left_behind(path)
    return seen.report(path, "finished" if state == "finished" else "not finished")


def note_error(seen: Examined, path: Path, call: Any) -> None:
    """Call it, and list the file where it finds something; each file once."""
    try:
        call()
    except MlaError as error:
        if not any(finding.item == str(path) and finding.state == PROBLEM for finding in seen.findings):
            seen.problem(path, error.message.replace(f"`{path}` ", ""), error.hint)


def check_listed(run: Run, info: dict[str, Any], seen: Examined) -> Steps[None]:
    """The files whose SHA-256 `run.json` holds."""
    listed = info.get("files", {})
    finished = info.get("state") == "finished"
    if not isinstance(listed, dict):
        seen.problem(run.path / "run.json", "is damaged: its list of files is none")
        return
    for name, digest in listed.items():
        mend = recipe_mended(run) if name == "recipe.yaml" else None
        yield from seen.compare(run.path / str(name), str(digest), mend)
    for name in NEEDED if finished and not run.is_imported else ():
        if name not in listed and not (run.path / name).is_file():
            seen.problem(run.path / name, "is missing")
    bare = [name for name in (*FILES, *REPORTS) if name not in listed and (run.path / name).is_file()]
    if finished and bare:
        text = f"without checksum (made by an earlier version): {', '.join(bare)}"
        seen.add(run.path, WARNING, text, "nothing; whether they are whole is not known")


def recipe_mended(run: Run) -> str:
    """What to do about a recipe that differs: training it again would make another run."""
    try:
        run.recipe()
    except MlaError as error:
        return error.hint
    return "nothing: only its layout or comments differ"


def check_checkpoints(run: Run, info: dict[str, Any], seen: Examined) -> Steps[None]:
    """Every checkpoint: its JSON, the tensors it names, and the frozen networks."""
    for file in sorted(run.checkpoints.glob("*.json")):
        values = seen.sealed(file)
        if values is None:
            continue
        try:
            named = run.checkpoint_values(file.stem)["tensors"]
        except MlaError as error:
            seen.problem(file, error.message.replace(f"`{file}` ", ""))
            continue
        digest = values.get("tensors_sha256")
        if digest is not None:
            yield from seen.compare(run.checkpoints / named, str(digest))
        elif not (run.checkpoints / named).is_file():
            seen.problem(run.checkpoints / named, "is missing")
        else:
            text = "without checksum (made by an earlier version)"
            seen.add(run.checkpoints / named, WARNING, text, "nothing; whether it is whole is not known")
    for file in run.checkpoints.glob("*-e*.safetensors") if info.get("state") == "finished" else ():
        owner = file.with_name(f"{file.name.partition('-e')[0]}.json")
        if not owner.is_file():
            seen.problem(owner, "is missing")
    if (digest := info.get("frozen_sha256")) is not None:
        yield from seen.compare(run.frozen_file, str(digest))
    which = str(info.get("checkpoint", "")).partition("@")[0]
    if (
        info.get("state") == "finished"
        and which in ("best", "last")
        and not (run.checkpoints / f"{which}.json").is_file()
    ):
        seen.problem(run.checkpoints / f"{which}.json", "is missing")


def predictions_fit(run: Run, info: dict[str, Any], seen: Examined) -> None:
    """Predictions of another run in this one's folder. Damaged ones were listed by their checksum."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        facts = json.loads((pq.read_schema(run.predictions).metadata or {}).get(b"mla", b"{}"))
    except (OSError, ValueError, pa.ArrowException) as error:
        if run.predictions.is_file() and not any(f.item == str(run.predictions) for f in seen.findings):
            seen.problem(run.predictions, f"cannot be read: {str(error).splitlines()[0]}")
        return
    for key, own in (("recipe_hash", info.get("hash")), ("data_fingerprint", info.get("data_fingerprint"))):
        if own is not None and facts.get(key) not in (None, own):
            seen.problem(run.predictions, f"are of another run: their {key.replace('_', ' ')} differs")
            return


def check_ablation(path: Path, reader: Reader) -> Steps[list[Finding]]:
    """The files of an ablation's folder; its runs lie beside it and are checked as such where they are named."""
    seen = Examined("ablation", reader, lambda: AGAIN)
    settings = seen.sealed(path / "settings.json")
    if settings is None:
        return seen.report(path, "an ablation")
    note_error(seen, path / "settings.json", lambda: stored_grid(path))
    listed = settings.get("files", {})
    for name, digest in listed.items() if isinstance(listed, dict) else ():
        yield from seen.compare(path / str(name), str(digest))
    if "files" not in settings:
        seen.add(path, WARNING, "its tables are without checksum (made by an earlier version)", AGAIN)
    runs: list[str] = []
    with suppress(MlaError):
        runs = runs_in_order(path)
    for name in runs:
        if not (path.parent / name / "run.json").is_file():
            seen.add(path.parent / name, WARNING, f"is a run of `{path}` and not there any more", AGAIN)
    seen.left_behind(path)
    return seen.report(path, f"an ablation of {len(runs)} runs")


def check_recipe(path: Path) -> Finding:
    """A file that is named on its own: a recipe."""
    try:
        recipe = load_recipe(str(path))
    except MlaError as error:
        return Finding("recipe", str(path), PROBLEM, error.message, error.hint)
    modalities = ", ".join(recipe.dataset.modalities or []) or "all modalities"
    text = f"a recipe: {recipe.method.name} on {recipe.dataset.name}, {modalities}, {recipe.train.epochs} epochs"
    return Finding("recipe", str(path), OK, text)


def check_lock(path: Path) -> list[Finding]:
    """A lock's file that is still there."""
    holder = read_holder(path)
    if holder is None:
        text = "names nobody: a process was killed while it wrote it, or holds it right now"
        return [Finding("lock", str(path), WARNING, text, "nothing; the next command takes it over if it is free")]
    if holder.has_ended:
        return [Finding("lock", str(path), OK, f"left by {holder}, which is gone: the next command takes it over")]
    if holder.is_elsewhere:
        mend = f"if it has ended there: rm {shlex.quote(str(path))}"
        return [Finding("lock", str(path), WARNING, f"held by {holder}, on another machine", mend)]
    return [Finding("lock", str(path), OK, f"held by {holder}")]
