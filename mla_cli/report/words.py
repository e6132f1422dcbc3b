"""What a report says in sentences: what was run, what came out, and what that does not show."""

import numpy as np
import pandas as pd

from mla_cli.core.fusion import softmax
from mla_cli.core.metrics import accuracy, ece, entropy_choice, oracle_gap
from mla_cli.engine import results
from mla_cli.engine.ablate import Ablation
from mla_cli.engine.curves import is_number
from mla_cli.engine.report import SPLIT, RunFacts
from mla_cli.render import counted, percent, spread
from mla_cli.wide import Cells, difference

ON_TEST = "select_on: test"


def and_list(names: list[str]) -> str:
    """
    >>> and_list(["a"]), and_list(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def what_was_run(f: RunFacts) -> str:
    """Method, data, modalities, budget, protocol."""
    recipe, data = f.recipe, f.record.data
    method = recipe.method.name
    switch = f" (head gradient modification: {recipe.method.hgm})" if method == "mla" else ""
    encoders = [f"{m} ({recipe.encoders[m].name})" if m in recipe.encoders else m for m in f.modalities]
    splits = {"train": data.train, "val": data.val, "test": data.test}
    sizes = [f"{found.samples} for {split}" for split, found in splits.items() if found is not None]
    fold = f" fold {recipe.dataset.fold}" if recipe.dataset.fold else ""
    trained = f"was trained for {counted(recipe.train.epochs, 'epoch')} with seed {recipe.seed} on"
    if f.history is None:
        trained = "was trained elsewhere, and scored on"
    text = f"Method `{method}`{switch} {trained} `{f.test.facts['dataset']}`: "
    text += f"{len(f.classes)} classes, modalities {and_list(encoders)}. "
    text += f"Protocol `{f.test.facts['protocol']}`{fold}" + (f": {and_list(sizes)}." if sizes else ".")
    return text + missing_in_training(f)


def missing_in_training(f: RunFacts) -> str:
    """What training lacked, where it was made to lack something."""
    drawn = f.test.facts.get("train_missing")
    if not isinstance(drawn, dict):
        return ""
    return (
        f" In training {100 * drawn['realised']:.1f} % of the entries were taken away ({drawn['pattern']}, seed "
        f"{drawn['seed']}; absent ones: {f.recipe.train.absent})."
    )


def who_chose_the_epoch(selected_on: str, chosen: int, epochs: int) -> str:
    """On what the scored epoch was chosen, and what follows for the test numbers."""
    scored = f"Epoch {chosen} of {epochs}" if chosen else "The epoch scored here"
    if selected_on == "val":
        return f"{scored} had the best fused accuracy on val and was scored on test. Test had no part in that choice."
    if selected_on == "last":
        return f"{scored}, the last one, was scored. Nothing was chosen by val or test."
    if selected_on == "test":
        return f"{scored} was chosen ON THE TEST SET ({ON_TEST}): every test number here is too good."
    return f"{scored}: how it was chosen is not known here ({selected_on})."


def what_came_out(f: RunFacts) -> list[str]:
    """Fused, alone, what fusing adds, what missing modalities cost, and how far the confidence can be trusted."""
    found = {output: accuracy(*scores) for output, scores in f.scores.items()}
    alone = {m: value for m, value in found.items() if m != "fused"}
    n = len(f.test)
    parts = [f"{m} alone in {percent(v)} %" for m, v in alone.items()]
    output = f"fused output (rule `{f.rule}`)" if len(alone) > 1 else "output"
    others = f", {and_list(parts)}" if len(alone) > 1 else ""
    lines = [
        f"On test (n = {n}) the {output} is right in {percent(found['fused'])} % of the samples"
        f"{interval(f.rows)}{others}."
    ]
    if len(alone) > 1:
        best = max(alone, key=alone.__getitem__)
        gap = oracle_gap(f.test.logits, f.test.present, f.test.labels, f.scores["fused"][0])
        lines.append(
            f"Fusing changes accuracy by {100 * (found['fused'] - alone[best]):+.1f} points against the best modality "
            f"alone, {best}. An oracle that always picked a modality that is right would be {100 * gap:.1f} points "
            "above the fused output."
        )
        share, count = entropy_choice(f.test.logits, f.test.present, f.test.labels)
        if count:
            lines.append(
                f"Where exactly one modality is right ({count} samples), the one with the lower entropy is it in "
                f"{percent(share)} %."
            )
    curve = rate_curve(f.rows)
    if len(curve) > 1:
        last = curve.iloc[-1]
        lines.append(
            f"With a missing rate of {last.missing_rate:g} at test time ({last.missing_pattern}), fused accuracy is "
            f"{spread(last.value, last.sd, int(last.n))} % (mean and sd over {int(last.n)} mask seeds)."
        )
    logits, labels = f.scores["fused"]
    confidence = float(softmax(logits.astype(np.float64)).max(1).mean())
    side = "surer than it is right" if confidence > found["fused"] else "less sure than it is right"
    lines.append(
        f"The {output.partition(' (')[0]} is {side}: mean confidence {percent(confidence)} %, accuracy "
        f"{percent(found['fused'])} %, expected calibration error {percent(ece(logits, labels))} %."
    )
    return lines


def interval(rows: pd.DataFrame) -> str:
    """The 95 % interval of the fused test accuracy, or why there is none."""
    some = rows[(rows["split"] == SPLIT) & (rows["output"] == "fused") & (rows["metric"] == "accuracy")]
    first = some[some["missing_rate"] == 0].iloc[0]
    groups = int(first["num_groups"])
    if pd.isna(first["low"]):
        return f" (no interval: {counted(groups, 'group')})" if groups else ""
    what = counted(groups, "group") if groups else "samples"
    return f" (95 % interval {percent(first['low'])} to {percent(first['high'])} %, bootstrap over {what})"


def rate_curve(rows: pd.DataFrame) -> pd.DataFrame:
    """Fused test accuracy at each missing rate: mean, sd and number of mask seeds."""
    some = rows[(rows["split"] == SPLIT) & (rows["output"] == "fused") & (rows["metric"] == "accuracy")]
    curve = results.over_mask_seeds(some[some["missing_rate"].map(is_number)])
    return curve.drop_duplicates("missing_rate").sort_values("missing_rate")


def not_shown_by_a_run(f: RunFacts) -> list[str]:
    """What a reader must not conclude."""
    recipe = f.recipe
    lines = [
        "How much the numbers move with the training seed: this is one run. More: "
        f"`mla ablate --recipe {f.run.recipe_file} --over method.name={recipe.method.name} --seeds 0,1,2`.",
        "That one output is better than another: nothing here was tested. An interval is about other samples of the "
        "same kind, not about another training.",
    ]
    lines += few_distinct(f)
    lines.append(f"Anything about other data than `{f.test.facts['dataset']}`, protocol `{f.test.facts['protocol']}`.")
    return lines


def few_distinct(f: RunFacts) -> list[str]:
    """Samples that share their inputs are not independent."""
    facts = (f.test.facts.get("splits") or {}).get(SPLIT) or {}
    n, distinct = facts.get("samples", 0), facts.get("distinct") or {}
    few = [f"{count} distinct {m}" for m, count in distinct.items() if count < n]
    if not few or facts.get("pair_seed") is None:
        return []
    return [f"{n} independent samples: the test pairs are drawn by class from {and_list(few)} inputs."]


# ---------------------------------------------------------------- ablations


def what_the_grid_was(a: Ablation, seeds: list[int]) -> str:
    first = a.rows.iloc[0]
    names = {"default": "the default grid", "over": "a grid of one's own"}
    grid = names.get(a.grid, f"the preset `{a.grid}`")
    n = int(a.rows["num_samples"].max())
    fold = f" fold {first['fold']}" if first["fold"] else ""
    return (
        f"This is {grid} on `{first['dataset']}`: {counted(len(a.labels), 'setting')} over "
        f"{counted(len(seeds), 'training seed')} ({', '.join(map(str, seeds))}), "
        f"{counted(len(a.runs), 'finished run')}. Settings that differ only at test time share their runs. "
        f"Protocol `{first['protocol']}`{fold}, {first['split']} n = {n}. The settings are compared with `{a.full}`."
    )


def what_the_grid_found(a: Ablation) -> list[str]:
    """Best and full setting, and which differences exceed their own spread."""
    cells = Cells(a)
    fused = {s: cells.found[s, "fused"] for s in a.labels if (s, "fused") in cells.found}
    lines = []
    if a.full in fused:
        value, sd, count = fused[a.full]
        lines.append(
            f"Fused, with nothing missing, `{a.full}` is right in {spread(value, sd, count)} % (n = {count} seeds)."
        )
    best = max(fused, key=lambda s: fused[s][0])
    if best != a.full:
        lines.append(f"The highest mean is that of `{best}`: {spread(*fused[best])} % (n = {fused[best][2]} seeds).")
    clear: list[str] = []
    unclear: list[str] = []
    single: list[str] = []
    for setting in fused:
        shown = difference(cells.rows, setting, a.full)
        if not shown:
            continue
        mean, plus_minus, sd = shown.partition(" ± ")
        if not plus_minus:
            single.append(f"{setting} ({mean})")
        else:
            (clear if abs(float(mean)) > float(sd) else unclear).append(f"{setting} ({shown})")
    if clear:
        lines.append(f"Further from it than one sd of the difference over seeds, in points: {'; '.join(clear)}.")
    if unclear:
        lines.append(f"Within one sd, so no difference to speak of: {'; '.join(unclear)}.")
    if single:
        lines.append(f"One common seed only, so the spread is unknown: {'; '.join(single)}.")
    return lines


def not_shown_by_a_grid(a: Ablation, seeds: list[int]) -> list[str]:
    lines = []
    if len(seeds) < 5:
        lines.append(
            f"How the methods rank: {counted(len(seeds), 'seed')} give a rough sd at best, none at all for one. "
            "`--seeds 0..9` trains more and reuses these runs."
        )
    if a.significance is None:
        lines.append(
            "Significance: nothing here was tested. `mla ablate --preset table1 --significance` tests each method "
            "against MLA on the same test items."
        )
    lines.append("What a learning rate and a budget tuned for each setting would give.")
    first = a.rows.iloc[0]
    lines.append(f"Anything about other data than `{first['dataset']}`, protocol `{first['protocol']}`.")
    if a.failed:
        lines.append(f"The runs that failed: {', '.join(a.failed)}.")
    return lines
