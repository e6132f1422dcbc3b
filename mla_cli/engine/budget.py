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
    fraction; negative where nothing was added). error: standard error of the accuracy before, sqrt(a (1 - a) / n), n
    the number of val samples. learning: the median best epoch lies after 80 % of the budget, and the gain is at least
    one standard error. With `select_on: test` all this is of test. Runs of one epoch are left out.
    """
    found = []
    for setting, own in runs.items():
        best, gains, errors, epochs = [], [], [], 0
        for run in own:
            history = run.history()
            split = "val" if history and "val_accuracy.fused" in history[0] else "test"  # where that chooses the epoch
            curve = [row[f"{split}_accuracy.fused"] for row in history]
            if len(curve) < 2:
                continue
            epochs = len(curve)
            start = min(epochs - 1, max(1, math.ceil(epochs * (1 - LAST))))
            top = max(curve)
            best.append(curve.index(top) + 1)
            gains.append(max(curve[start:]) - (before := max(curve[:start])))
            errors.append(math.sqrt(before * (1 - before) / run.info()["data"][split]["samples"]))
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
