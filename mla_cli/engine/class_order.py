"""The order of the classes in an imported checkpoint, which its file does not say: how it is read, and if that can be.

The released code sorts the names of its list of classes (its data sets' `classes`). Other code in its family does not:
the loaders of the OGM-GE family read CREMA-D as NEU, HAP, SAD, FEA, DIS, ANG.
"""

from pathlib import Path

import numpy as np
from scipy.optimize import linear_sum_assignment

from mla_cli.data.split_files import MAX_LIST_BYTES
from mla_cli.errors import MlaError
from mla_cli.files import read_at_most

SHOWN = 10  # so many names are listed
SUSPICIOUS = 0.2  # another order that fits so much better is worth a warning


def class_order(classes: str | None, own: list[str]) -> list[str]:
    """The classes in the order of the head's rows: as given, else sorted by name, as the released code does it.

    classes: names separated by commas, or a file with one a line. Raises MlaError where they are not the data set's.
    """
    if classes is None:
        return sorted(own)
    path = Path(classes)
    try:
        lines = (
            read_at_most(path, MAX_LIST_BYTES, "list of classes").decode("utf-8-sig").splitlines()
            if path.is_file()
            else classes.split(",")
        )
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a NUL in what may be a name
        raise MlaError(f"cannot read classes from `{path}`", "write one class a line, UTF-8") from error
    names = [line.strip() for line in lines if line.strip()]
    if sorted(names) != sorted(own):
        wrong = [n for n in names if n not in own] or [n for n in own if n not in names] or names
        raise MlaError(
            f"`--classes` must name each of the data set's {len(own)} classes once; look at `{wrong[0]}`",
            f"they are {','.join(own)}, to be put in the order of the checkpoint's head",
        )
    return names


def order_note(order: list[str], given: bool) -> str:
    """In which order the rows of the head are read."""
    shown = ", ".join(order) if len(order) <= SHOWN else f"{', '.join(order[:3])}, ..., {order[-1]}"
    why = "as `--classes` says" if given else "sorted by name, as in the released code; `--classes` gives another"
    return f"the file does not say the order of its classes: read as {shown} ({why})"


def other_order(fused: np.ndarray, labels: np.ndarray, own: list[str], order: list[str]) -> str | None:
    """A warning where the classes in another order would fit much better: then the one in use is likely wrong.

    fused: (sample, class) logits, NaN where a sample has nothing; labels: (sample,) numbers of classes; own: the data
    set's classes; order: those of the head's rows.
    """
    some = ~np.isnan(fused[:, 0])
    table = np.zeros((len(own), len(own)))  # (predicted, label)
    np.add.at(table, (fused[some].argmax(1), labels[some]), 1)
    predicted, meant = linear_sum_assignment(-table)  # the order that gives the highest accuracy
    now, best = np.trace(table) / table.sum(), table[predicted, meant].sum() / table.sum()
    if best < now + SUSPICIOUS:
        return None
    means = {own[p]: own[m] for p, m in zip(predicted, meant, strict=True)}
    return (
        f"fused accuracy on val (n = {int(some.sum())}) is {now:.1%}; with the classes in another order it would be "
        f"{best:.1%}. If the checkpoint is of that order: `--classes '{','.join(means[name] for name in order)}'`"
    )
