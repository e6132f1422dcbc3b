"""`mla train`: the epoch loop, a generator of events.

A run trains, validates after every epoch, keeps the best checkpoint by the fused accuracy on `train.select_on`, and
ends with predictions of val and test from which every table is made. Killed at any moment it goes on with `resume`,
and ends with the same bytes.
"""

import math
import time
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from mla_cli import registry
from mla_cli.core.ranks import ALONE, Ranks
from mla_cli.data.leakage import leaks_into_test
from mla_cli.data.split_files import WARNING
from mla_cli.engine.cautions import cautions
from mla_cli.engine.data import complete, ensure_prepared, load_data, open_store, run_fingerprint
from mla_cli.engine.devices import check_precision, choose_device
from mla_cli.engine.draws import STORED
from mla_cli.engine.evaluate import default_rows, write_results
from mla_cli.engine.events import Epoch, Finished, Note, Started, Steps
from mla_cli.engine.integrity import resuming_notes
from mla_cli.engine.latest import remember
from mla_cli.engine.memory import naming_memory
from mla_cli.engine.predictions import join
from mla_cli.engine.progress import Saved
from mla_cli.engine.run import Run, run_name
from mla_cli.engine.saving import Saver
from mla_cli.engine.scoring import accuracies, check_subsets, describe_samples, fused_scores, score
from mla_cli.engine.session import Session
from mla_cli.engine.shared_run import check_ranks, differences, run_of
from mla_cli.errors import MlaError, misfit
from mla_cli.files import sync_folder
from mla_cli.schema import Recipe
from mla_cli.signals import HeldBack

SCORED = ("val", "test")


def train(
    recipe: Recipe,
    data_dir: Path,
    run_dir: Path,
    device: str = "auto",
    threads: int | None = None,
    resume: bool = False,
    force: bool = False,
    ranks: Ranks = ALONE,
) -> Steps[Run]:
    """Train one run to its end; the generator's value is the finished `Run`.

    With several ranks every one of them calls this. Rank 0 prepares, holds the run and writes; an error of its own ends
    it, and the others, which wait for it, with it.
    """
    recipe = ranks.told(recipe)
    where = choose_device(device)
    check_precision(recipe.train.precision, where)
    check_ranks(recipe, where, ranks)
    if ranks.is_first:
        yield from ensure_prepared(recipe, data_dir)
    ranks.told(None)
    store = open_store(recipe, data_dir)
    recipe = complete(recipe, store)
    if threads or recipe.train.threads:
        torch.set_num_threads(threads or recipe.train.threads or 1)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    data = load_data(recipe, store, aligned=registry.load("methods", recipe.method.name).Method.aligned)
    fingerprint = run_fingerprint(recipe, store)
    run = run_of(run_dir / run_name(recipe, fingerprint), ranks)
    facts: dict[str, Any] = {
        "data_dir": str(data_dir),
        "device": str(where),
        "threads": torch.get_num_threads(),
        "processes": ranks.world,
        "epochs": recipe.train.epochs,
        "protocol": data.protocol,
        "data": data.facts,
        "store_fingerprint": store.fingerprint,
        "classes": store.classes,
        "raw_kinds": {m: store.manifest["modalities"][m]["raw_kind"] for m in data.modalities},
        "made_by": store.makers(data.modalities),
    }
    run.refuse_held()
    resume, rows = resume and not force, None
    if ranks.told(resume and run.state == "finished"):  # the process may have been killed just after that
        yield Note(f"{run.path} is finished already")
    else:
        run.refuse(resume, force)
        for text in resuming_notes(run, recipe, fingerprint) if resume else []:
            yield Note(text, warning=True)
        session = Session(recipe, data, where, ranks=ranks)  # nothing is written yet: it finds what a recipe cannot do
        check_subsets(session)
        if session.loaded:
            facts["weights"] = {loaded.modality: loaded.facts() for loaded in session.loaded}
        store.check_unchanged()
        with run.hold() as lock:
            if ranks.is_first and lock.ended is not None:
                yield Note(f"{lock.taken_over()}: taken over")
            if not ranks.told(resume and run.state == "finished"):  # by another process, meanwhile
                can_resume = ranks.told(run.claim(recipe, fingerprint, facts, resume, force))
                rows = yield from train_claimed(session, run, can_resume)
    if ranks.is_first:
        remember(run_dir, run.name)
        yield Finished(str(run.path), default_rows(run) if rows is None else rows)
    return run


def train_claimed(session: Session, run: Run, can_resume: bool) -> Steps[list[dict[str, Any]]]:
    """Train a run that is ours, from its start or its last checkpoint, to its end; the value: its rows of results."""
    recipe, data = session.recipe, session.data
    with run.failing(), naming_memory(session, run):
        if session.ranks.is_first:
            tidy(run)
            if data.draw is not None:
                data.draw.write(run.path / STORED)
        if frozen := session.weights(frozen=True):
            run.save_frozen(frozen)
        if can_resume:
            restore(session, run)
        run.keep_history(session.progress.epoch)
        rounds = len(session.train_loader.rounds)
        yield Started(str(run.path), recipe.train.epochs, rounds, session.progress.epoch + 1, can_resume)
        if data.draw is not None:
            yield Note(data.draw.line())
        for loaded in [] if can_resume else session.loaded:  # a checkpoint has replaced them
            yield Note(loaded.line()) if loaded.complete else warned(run, loaded.line())
        for line in session.inputs.warnings([loaded.modality for loaded in session.loaded]):
            yield warned(run, line)
        for line in differences(session.method):
            yield Note(line)
        for line in cautions(recipe, data):
            yield warned(run, line)
        for line in data.facts["split_notes"]:
            yield warned(run, line.removeprefix(WARNING)) if line.startswith(WARNING) else Note(line)
        for line in leaks_into_test(data.facts["leakage"]):
            yield warned(run, f"protocol {data.protocol} leaks: {line}")
        if recipe.train.select_on == "test":
            yield warned(run, "select_on: test picks the epoch on the test set; every row says so")
        if session.ranks.is_first:
            yield from session.inputs.compute_features()
        session.ranks.told(None)
        yield from epochs(session, run)
        for count, m in ((c, m) for m, c in session.train_loader.skipped.items() if c):
            were = "step of {m} was" if count == 1 else "steps of {m} were"
            yield warned(run, f"{count} {were.format(m=m)} skipped: too few samples in the batch")
        return finish(session, run)


def warned(run: Run, text: str) -> Note:
    """A warning, which `run.json` keeps too."""
    run.update(warnings=list(dict.fromkeys([*run.info().get("warnings", []), text])))
    return Note(text, warning=True)


def restore(session: Session, run: Run) -> None:
    """Take up the last checkpoint. Raises MlaError where something that resuming needs is not in it."""
    checkpoint = run.load_checkpoint("last")
    try:
        Saved.model_validate(checkpoint[1])
        session.load_state(*checkpoint)
    except ValidationError as error:
        raise MlaError(f"checkpoint `last` of `{run.path}`: {misfit(error)}", run.start_again) from error
    except KeyError as error:
        raise MlaError(f"checkpoint `last` of `{run.path}` lacks {error}", run.start_again) from error


def tidy(run: Run) -> None:
    """Remove what a kill left behind: half-written files, and tensors that no checkpoint names any more."""
    named = {run.checkpoint_values(file.stem)["tensors"] for file in run.path.glob("checkpoints/*.json")}
    for file in [*run.path.glob("checkpoints/*.safetensors"), *run.path.rglob(".*.tmp")]:
        if file.name not in named and file != run.frozen_file:
            file.unlink()


def epochs(session: Session, run: Run) -> Steps[None]:
    """All epochs that are left: train, validate, write history and checkpoints."""
    recipe, progress, saver = session.recipe, session.progress, Saver(session, run)
    while progress.epoch < recipe.train.epochs:
        begin = time.perf_counter()
        means = saver.train_rounds()
        trained = time.perf_counter()
        chosen_on = "test" if recipe.train.select_on == "test" else "val"
        with saver.untouched():
            found = validate(session, chosen_on)
        with HeldBack():  # this is short, and else the epoch would be trained again
            session.close_epoch()
            is_best = found["fused"] > progress.best_accuracy
            if is_best:
                progress.best_epoch, progress.best_accuracy = progress.epoch, found["fused"]
            row: dict[str, Any] = {"epoch": progress.epoch, "lr": rate_of(session)}
            row |= {f"train_loss.{output}": value for output, value in means.items()}
            row |= {f"{chosen_on}_accuracy.{output}": value for output, value in found.items()}
            # JSON has no NaN: a diagnostic that overflowed is null
            row |= {name: v if math.isfinite(v) else None for name, v in session.end_epoch().items()}
            notes = [warned(run, text) for text in session.method.context.warnings]
            session.method.context.warnings.clear()
            run.append("history.jsonl", row)
            if is_best:
                values = {"epoch": progress.epoch, "round": 0, "accuracy": found["fused"]}
                run.save_checkpoint("best", session.model_state(), values)
            saver.save()
            seconds = {"epoch": progress.epoch, "train": trained - begin, "all": time.perf_counter() - begin}
            run.append("timing.jsonl", seconds)
        yield from notes
        yield Epoch(progress.epoch, row, is_best, seconds["all"])


def rate_of(session: Session) -> float:
    """The encoders' learning rate as it stands."""
    return float(next(iter(session.optimizers.values())).param_groups[0]["lr"])


def validate(session: Session, split: str) -> dict[str, float]:
    """Accuracy of every modality and of the fused output on a split."""
    session.share_buffers()
    predictions = score(session, split, every_subset=False)
    method = session.method
    fused = fused_scores(predictions, predictions.present, session.recipe, method.native_rule, method.default_rule)
    return accuracies(predictions, fused)


def finish(session: Session, run: Run, **facts: Any) -> list[dict[str, Any]]:
    """Score val and test with the selected checkpoint, write predictions and results, mark the run finished.

    facts: of the predictions, in place of those of a run that was trained here. Returns the rows of its results; of
    several ranks the first does, the others none.
    """
    which = "last" if session.recipe.train.select_on == "last" else "best"
    tensors, values = run.load_checkpoint(which)
    session.load_model(tensors)
    parts = {split: score(session, split, every_subset=True) for split in SCORED}
    if not session.ranks.is_first:
        return []
    predictions = join(parts)
    info, method, recipe = run.info(), session.method, session.recipe
    predictions.facts = {
        "classes": session.data.classes,
        "recipe_hash": info["hash"],
        "data_fingerprint": info["data_fingerprint"],
        "native_rule": method.native_rule,
        "default_rule": method.default_rule,
        "alone_readout": method.alone_readout,
        "dataset": recipe.store if recipe.dataset.name == "table" else recipe.dataset.name,
        "protocol": session.data.protocol,
        "splits": {split: describe_samples(session.data.splits[split]) for split in SCORED},
        "checkpoint": f"{which}@{values['epoch']}",
        "train_missing": session.data.facts.get("train_missing"),
    } | facts
    predictions.write(run.predictions)
    rows = write_results(run)
    sync_folder(run.path / "checkpoints")  # or a power loss could bring back older ones, which nobody tidies then
    run.update(
        state="finished",
        files=run.digests(),
        best_epoch=session.progress.best_epoch,
        checkpoint=f"{which}@{values['epoch']}",
    )
    return rows
