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

from mla_cli import registry
from mla_cli.data.leakage import leaks_into_test
from mla_cli.data.split_files import WARNING
from mla_cli.engine.data import complete, ensure_prepared, load_data, open_store, run_fingerprint
from mla_cli.engine.devices import choose_device
from mla_cli.engine.draws import STORED
from mla_cli.engine.evaluate import default_rows, write_results
from mla_cli.engine.events import Epoch, Finished, Note, Started, Steps
from mla_cli.engine.latest import remember
from mla_cli.engine.memory import naming_memory
from mla_cli.engine.predictions import join
from mla_cli.engine.run import Run, run_name
from mla_cli.engine.saving import Saver
from mla_cli.engine.scoring import accuracies, check_subsets, describe_samples, fused_scores, score
from mla_cli.engine.session import Session
from mla_cli.errors import MlaError
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
) -> Steps[Run]:
    """Train one run to its end; the generator's value is the finished `Run`."""
    yield from ensure_prepared(recipe, data_dir)
    store = open_store(recipe, data_dir)
    recipe = complete(recipe, store)
    if threads or recipe.train.threads:
        torch.set_num_threads(threads or recipe.train.threads or 1)
    where = choose_device(device)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    data = load_data(recipe, store, aligned=registry.load("methods", recipe.method.name).Method.aligned)
    fingerprint = run_fingerprint(recipe, store)
    run = Run(run_dir / run_name(recipe, fingerprint))
    facts: dict[str, Any] = {
        "data_dir": str(data_dir),
        "device": str(where),
        "threads": torch.get_num_threads(),
        "epochs": recipe.train.epochs,
        "protocol": data.protocol,
        "data": data.facts,
        "store_fingerprint": store.fingerprint,
        "raw_kinds": {m: store.manifest["modalities"][m]["raw_kind"] for m in data.modalities},
        "made_by": store.makers(data.modalities),
    }
    resume = resume and not force
    if resume and run.state == "finished":  # nothing is left, but the process may have been killed just after that
        yield Note(f"{run.path} is finished already")
    else:
        run.refuse(resume, force)
        session = Session(recipe, data, where)  # before anything is written: it finds what the recipe cannot do
        check_subsets(session)
        if session.loaded:
            facts["weights"] = {loaded.modality: loaded.facts() for loaded in session.loaded}
        with run.hold():
            if not (resume and run.state == "finished"):  # by another process, meanwhile
                can_resume = run.claim(recipe, fingerprint, facts, resume, force)
                yield from train_claimed(session, run, can_resume)
    remember(run_dir, run.name)
    yield Finished(str(run.path), default_rows(run))
    return run


def train_claimed(session: Session, run: Run, can_resume: bool) -> Steps[None]:
    """Train a run that is ours, from its beginning or its last checkpoint, to its end."""
    recipe, data = session.recipe, session.data
    with run.failing(), naming_memory(session, run):
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
        for line in data.facts["split_notes"]:
            yield warned(run, line.removeprefix(WARNING)) if line.startswith(WARNING) else Note(line)
        for line in leaks_into_test(data.facts["leakage"]):
            yield warned(run, f"protocol {data.protocol} leaks: {line}")
        if recipe.train.select_on == "test":
            yield warned(run, "select_on: test picks the epoch on the test set; every row says so")
        yield from session.inputs.compute_features()
        yield from epochs(session, run)
        for count, m in ((c, m) for m, c in session.train_loader.skipped.items() if c):
            yield warned(run, f"{count} steps of {m} were skipped: too few samples in the batch")
        finish(session, run)


def warned(run: Run, text: str) -> Note:
    """A warning, which `run.json` keeps too."""
    run.update(warnings=list(dict.fromkeys([*run.info().get("warnings", []), text])))
    return Note(text, warning=True)


def restore(session: Session, run: Run) -> None:
    """Take up the last checkpoint. Raises MlaError where something that resuming needs is not in it."""
    checkpoint = run.load_checkpoint("last")
    try:
        session.load_state(*checkpoint)
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
    predictions = score(session, split, every_subset=False)
    method = session.method
    fused = fused_scores(predictions, predictions.present, session.recipe, method.native_rule, method.default_rule)
    return accuracies(predictions, fused)


def finish(session: Session, run: Run, **facts: Any) -> None:
    """Score val and test with the selected checkpoint, write predictions and results, mark the run finished.

    facts: of the predictions, in place of those of a run that was trained here.
    """
    which = "last" if session.recipe.train.select_on == "last" else "best"
    tensors, values = run.load_checkpoint(which)
    session.load_model(tensors)
    parts = {split: score(session, split, every_subset=True) for split in SCORED}
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
    write_results(run)
    sync_folder(run.path / "checkpoints")  # or a power loss could bring back older ones, which nobody tidies then
    run.update(state="finished", best_epoch=session.progress.best_epoch, checkpoint=f"{which}@{values['epoch']}")
