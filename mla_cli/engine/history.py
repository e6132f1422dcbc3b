"""What a run's epochs were like: `history.jsonl` as a long table, one number per row. No torch."""

import pandas as pd

from mla_cli.engine.run import Run
from mla_cli.errors import MlaError

COLUMNS = ("run", "method", "hgm", "seed", "epoch", "diagnostic", "of", "value")


def history_rows(run: Run) -> pd.DataFrame:
    """Every figure of every epoch. of: the modality, pair (`audio+visual`) or output it is about; empty for the run.

    A figure that overflowed is NaN. Raises MlaError for a run without any epoch.
    """
    lines, recipe = run.history(), run.recipe()
    if run.is_imported:
        hint = f"evaluate it with `mla eval {run.path}`"
        raise MlaError(f"`{run.path}` was imported: what its training did to each modality is not known", hint)
    if not lines:
        raise MlaError(f"`{run.path / 'history.jsonl'}` holds no epoch", "train the run again with `--force`")
    facts = {
        "run": run.name,
        "method": recipe.method.name,
        "hgm": recipe.method.hgm if recipe.method.name == "mla" else "",
        "seed": recipe.seed,
    }
    rows = []
    for line in lines:
        epoch = line.pop("epoch")
        for key, value in line.items():
            diagnostic, _, of = key.partition(".")
            rows.append({**facts, "epoch": epoch, "diagnostic": diagnostic, "of": of, "value": value})
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"value": float})


def chosen_epoch(run: Run) -> int:
    """The epoch whose weights were scored."""
    return int(str(run.info()["checkpoint"]).partition("@")[2])


def require_diagnostics(run: Run, rows: pd.DataFrame) -> None:
    """Raise MlaError for a run that was trained without them."""
    if not rows["diagnostic"].isin(["train_accuracy"]).any():
        raise MlaError(
            f"`{run.path}` was trained without diagnostics",
            f"train it again: `mla train --recipe {run.path / 'recipe.yaml'} --set train.diagnostics=true "
            f"--run-dir {run.path.parent}`",
        )
