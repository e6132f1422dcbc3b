"""`mla eval --diagnostics`: what training did to each modality, as tables, rows and a figure."""

import pandas as pd

from mla_cli.engine.evaluate import is_smoke
from mla_cli.engine.history import chosen_epoch, history_rows, require_diagnostics
from mla_cli.engine.history_figures import diagnostics_figure
from mla_cli.engine.run import Run
from mla_cli.render import Wide, percent, say
from mla_cli.tables import print_tables
from mla_cli.wide import HEAD, HEAD_NOTE

OF_A_MODALITY = {
    "train_accuracy": "train accuracy %",
    "val_accuracy": "val accuracy %",
    "test_accuracy": "TEST accuracy %",  # where that chose the epoch
    "rho": "rho",
    "gradient_norm": "gradient norm",
    "forgetting": "forgetting",
    "round_change": "round change",
}
OF_A_PAIR = {"head_cosine": "cosine of head gradients", "modality_gap": "modality gap"}


def number(value: float, name: str = "") -> str:
    """Three digits; accuracies as percentages; `none` for what overflowed."""
    return "none" if pd.isna(value) else percent(value) if name.endswith("accuracy") else f"{value:.3g}"


def table(rows: pd.DataFrame, title: str, corner: str, names: dict[str, str], notes: list[str]) -> Wide | None:
    """One line for each modality or pair, a column for each of the diagnostics that the run has; None for none."""
    some = rows[rows["diagnostic"].isin(list(names))]
    shown = [name for name in names if (some["diagnostic"] == name).any()]
    if not shown:
        return None
    cells = {(r.of, r.diagnostic): number(r.value, r.diagnostic) for r in some.itertuples()}
    things = [thing for thing in dict.fromkeys(some["of"]) if thing != "fused"]
    lines = [[thing or "shared head", *(cells.get((thing, name), "") for name in shown)] for thing in things]
    return Wide(title, [corner, *(names[name] for name in shown)], lines, notes)


def diagnosis_tables(rows: pd.DataFrame, chosen: int, smoke: bool = False) -> list[Wide]:
    """The epoch that was scored: by modality, by pair of modalities, and the head's."""
    at = rows[rows["epoch"] == chosen]
    run, last = rows.iloc[0]["run"], int(rows["epoch"].max())
    notes = [
        "train: up to 256 training samples of each modality; forgetting, round change, gap: up to 128 of val",
        "rho: certainty of the right class over the mean of the others'; forgetting: loss (nats) that the others' "
        "steps of the epoch's middle round added, round change: that the whole round added; both in proportion to "
        f"the learning rate ({at[at['diagnostic'] == 'lr']['value'].iloc[0]:.2g} at the end of this epoch)",
    ]
    if smoke:
        notes.append("SMOKE RUN: NOT A RESULT")
    separable = at[at["diagnostic"] == "modality_separability"]["value"]
    pairs = []
    if len(separable):
        count = len(set(at[at["diagnostic"] == "train_accuracy"]["of"]))
        chance = f"chance {100 / count:.1f} %" if count else ""
        pairs = [f"a linear classifier tells the modality from a feature in {percent(separable.iloc[0])} % ({chance})"]
    wanted = (
        table(at, f"{run}: each modality, epoch {chosen} of {last}", "modality", OF_A_MODALITY, notes),
        table(at, f"{run}: pairs of modalities, epoch {chosen}", "pair", OF_A_PAIR, pairs),
        table(at, f"{run}: the shared head, epoch {chosen}", "part", HEAD, [HEAD_NOTE]),
    )
    return [made for made in wanted if made is not None]


def print_diagnosis(run: Run, style: str, quiet: bool = False) -> None:
    """Tables of the epoch that was scored, or the rows of every epoch; the figure goes to the run's folder."""
    rows = history_rows(run)
    require_diagnostics(run, rows)
    chosen = chosen_epoch(run)
    files = diagnostics_figure(rows, chosen, run.path)
    print_tables(diagnosis_tables(rows, chosen, is_smoke(run.recipe())), rows, style)
    say(f"every epoch: {' and '.join(str(file) for file in files)}, or --format csv", quiet)
