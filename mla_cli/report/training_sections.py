"""Sections about a run's training: learning curves, balance, modality gap and the shared head, epoch by epoch."""

from pathlib import Path

import numpy as np

from mla_cli.engine import history_figures as history
from mla_cli.engine.report import RunFacts
from mla_cli.render import counted, percent
from mla_cli.report.tags import At, figure, paragraph, section


def learning(f: RunFacts, folder: Path, at: At) -> str:
    if f.history is None:
        none = "The run has no history: it was not trained here, so there are no learning curves and no diagnostics."
        return section(at, "learning", "Learning curves", paragraph(none))
    split = history.validated_on(f.history)
    scored = f.history[(f.history["epoch"] == f.chosen) & (f.history["diagnostic"] == f"{split}_accuracy")]
    reached = ", ".join(f"{row.of} {percent(row.value)} %" for row in scored.itertuples())
    epochs = counted(len(set(f.history["epoch"])), "epoch")
    alt = f"Training loss and accuracy over {epochs}. At the scored epoch {f.chosen}, accuracy on {split}: {reached}."
    caption = (
        f"Loss in training by output, and accuracy of each modality alone and fused. Dashed: up to 256 "
        f"training samples; solid: {split}; dotted: epoch {f.chosen}, which was scored."
    )
    drawing = figure(history.learning_curves(f.history, f.chosen, folder), alt, caption)
    return section(at, "learning", "Learning curves", drawing)


def balance(f: RunFacts, folder: Path, at: At) -> str:
    shown = over_epochs(f, folder, history.BALANCE, "balance") if len(f.modalities) > 1 else []
    if not shown:
        return ""
    caption = (
        "rho: how much surer of the right class a modality is than the others (1: balanced). Forgetting: loss on held "
        "val samples that the steps of the other modalities add in the epoch's middle round; a round's change: that of "
        "all its steps. Dotted: the scored epoch."
    )
    alt = f"Imbalance between the modalities over the epochs. {ends(f, history.BALANCE)}"
    return section(at, "balance", "Balance between the modalities", figure(shown, alt, caption))


def gap(f: RunFacts, folder: Path, at: At) -> str:
    shown = over_epochs(f, folder, history.GAP, "modality_gap")
    if not shown:
        return ""
    caption = (
        "Modality gap: the distance between the mean features of two modalities, of up to 128 held val samples, each "
        "feature scaled to length 1; and how many features a linear classifier assigns to their modality. Single "
        "features are not stored with a run, so no map of them is drawn. Dotted: the scored epoch."
    )
    alt = f"Modality gap over the epochs. {ends(f, history.GAP)}"
    return section(at, "gap", "Modality gap", figure(shown, alt, caption))


def head(f: RunFacts, folder: Path, at: At) -> str:
    off = f.recipe.method.name == "mla" and f.recipe.method.hgm == "off"
    names = ("head_leak",) if off else history.HEAD  # without HGM, P is the identity
    shown = over_epochs(f, folder, names, "hgm")
    if not shown:
        return ""
    caption = (
        "Head leak: how much of the head's update points along the previous modality's mean feature h, "
        "|dW h| / (|dW| |h|); 0 is what HGM aims at."
    )
    if not off:
        caption += (
            " P is the matrix that HGM multiplies the head's gradient with; below 1 it takes something away. When its "
            "eigenvalues near 0 the head hardly learns any more."
        )
    title = "Head gradient modification" if not off else "Shared head (head gradient modification is off)"
    alt = f"Diagnostics of the shared head over the epochs. {ends(f, names)}"
    return section(at, "hgm", title, figure(shown, alt, caption))


def over_epochs(f: RunFacts, folder: Path, names: tuple[str, ...], file: str) -> list[Path]:
    """The figure of these diagnostics; none for a run without them."""
    return [] if f.history is None else history.diagnostics_over_epochs(f.history, f.chosen, names, folder, file)


def ends(f: RunFacts, names: tuple[str, ...]) -> str:
    """The diagnostics' means at the scored epoch, in words."""
    assert f.history is not None
    scored = f.history[f.history["epoch"] == f.chosen]
    means = scored.groupby("diagnostic")["value"].mean()
    means = means.mul(100).where(means.index == "modality_separability", means)
    known = [f"{history.DIAGNOSTICS[n][0]} {means[n]:.3g}" for n in names if n in means and not np.isnan(means[n])]
    return f"At the scored epoch {f.chosen}: {', '.join(known)}."
