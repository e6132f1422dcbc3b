"""Was a method still learning when its budget of epochs ended? Read from the histories. No torch."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from mla_cli.engine.run import Run

LATE = 0.8  # of the budget: a best epoch up to here is early enough
LAST = 0.2  # of the budget: the part in which nothing much may be gained any more


def budgets(runs: Mapping[str, Sequence[Run]]) -> pd.DataFrame:
    """Per setting: best_epoch (median seed), epochs, gain, error, learning.

    gain: what the last fifth of the epochs added to the best fused accuracy on val before it, mean over seeds (a
    fraction; negative where nothing was added). error: standard error of that accuracy, sqrt(a (1 - a) / n), n the
    number of val samples. learning: the median best epoch lies after 80 % of the budget, and the gain is at least one
    standard error.
    """
    found = []
    for setting, own in runs.items():
        best, gains, errors, epochs = [], [], [], 0
        for run in own:
            curve = [row["val_accuracy.fused"] for row in run.history() if "val_accuracy.fused" in row]
            if len(curve) < 2:
                continue
            epochs = len(curve)
            start = min(epochs - 1, max(1, math.ceil(epochs * (1 - LAST))))
            top = max(curve)
            best.append(curve.index(top) + 1)
            gains.append(max(curve[start:]) - max(curve[:start]))
            errors.append(math.sqrt(top * (1 - top) / run.info()["data"]["val"]["samples"]))
        if not best:
            continue
        median, gain, error = float(pd.Series(best).median()), sum(gains) / len(gains), sum(errors) / len(errors)
        found.append(
            {
                "setting": setting,
                "best_epoch": median,
                "epochs": epochs,
                "gain": gain,
                "error": error,
                "learning": median > LATE * epochs and gain >= error,
                "seeds": len(best),
            }
        )
    return pd.DataFrame(found, columns=["setting", "best_epoch", "epochs", "gain", "error", "learning", "seeds"])
