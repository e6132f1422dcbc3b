"""`mla eval --linear-probe`: the table of probes beside the run's own readout."""

from mla_cli.engine import results
from mla_cli.engine.probe import STRENGTHS, Probed, pairs_of
from mla_cli.render import Wide, percent
from mla_cli.tables import print_tables
from mla_cli.wide import about


def probe_table(found: Probed) -> Wide:
    """One line for each modality: how the run reads it, and how a linear classifier of its own does."""
    lines = []
    for modality, cells in pairs_of(found.rows).items():
        values = [
            percent(cells[is_probe, metric]["value"]) if (is_probe, metric) in cells else ""
            for is_probe in (False, True)
            for metric in ("accuracy", "macro_f1")
        ]
        counts = [str(found.num_train.get(modality, "")), str(next(iter(cells.values()))["num_samples"])]
        lines.append(
            [modality, *values, f"{found.strengths[modality]:g}" if modality in found.strengths else "", *counts]
        )
    first = found.rows[0]
    own = first["alone_readout"]
    columns = ["modality", f"{own}: accuracy", "macro-F1", "linear probe: accuracy", "macro-F1", "l2", "n train", "n"]
    notes = [
        about(results.frame(found.rows)),
        f"linear probe: logistic regression on the features that the head sees, l2 from {STRENGTHS[-1]:g} to "
        f"{STRENGTHS[0]:g} chosen on val",
    ]
    return Wide(f"{first['run']}: each modality alone, {first['split']} (%)", columns, lines, notes)


def print_probe(found: Probed, style: str) -> None:
    """The table, or its rows."""
    print_tables([probe_table(found)], results.frame(found.rows), style)
