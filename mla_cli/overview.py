"""`mla status` as tables: runs and prepared sets, each with its state."""

from dataclasses import asdict

import pandas as pd

from mla_cli.engine.status import RunStatus, Status
from mla_cli.render import Wide, counted, percent


def status_tables(found: Status) -> list[Wide]:
    """Runs, then prepared sets; below each table what continues the unfinished ones."""
    runs = [[r.run, r.state, epochs_text(r), shown(r.val), shown(r.test), ago(r.age)] for r in found.runs]
    stores = [
        [
            s.store,
            s.state,
            s.dataset,
            "" if s.samples is None else str(s.samples),
            s.fingerprint[:8],
            size(s.bytes),
            ago(s.age),
        ]
        for s in found.stores
    ]
    return [
        Wide(
            f"runs under {found.run_dir}",
            ["run", "state", "epochs", "fused val %", "fused test %", "changed"],
            runs,
            [line(r.run, r.state, r.note, r.command) for r in found.runs if r.note or r.command]
            or ([] if runs else ["none; train one with `mla train`"]),
        ),
        Wide(
            f"prepared sets under {found.data_dir}",
            ["set", "state", "data set", "samples", "fingerprint", "size", "changed"],
            stores,
            [line(s.store, s.state, s.note, s.command, s.shards) for s in found.stores if s.note or s.command]
            or ([] if stores else ["none; prepare one with `mla prepare NAME`"]),
        ),
    ]


def line(name: str, state: str, note: str, command: str, shards: int | None = None) -> str:
    """Why something is not ready, and what to type."""
    made = "" if shards is None else f" ({counted(shards, 'shard')} made)"
    doing = "try again" if state in ("failed", "damaged") else "go on"
    return f"{name} {state}{made}" + (f": {note}" if note else "") + (f"; {doing} with: {command}" if command else "")


def epochs_text(run: RunStatus) -> str:
    """`12 of 40`; empty where nothing is known."""
    return "" if run.epoch is None or not run.epochs else f"{run.epoch} of {run.epochs}"


def shown(value: float | None) -> str:
    return "" if value is None else percent(value)


def ago(seconds: float) -> str:
    """How long ago, roughly.

    >>> ago(3), ago(150), ago(7300), ago(400000)
    ('3 s ago', '2 min ago', '2 h ago', '4 d ago')
    """
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def size(count: int) -> str:
    """Bytes as people read them.

    >>> size(999), size(52_400_000), size(3_100_000_000)
    ('1.0 kB', '52.4 MB', '3.1 GB')
    """
    for length, unit in ((1e9, "GB"), (1e6, "MB")):
        if count >= length:
            return f"{count / length:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"


def status_rows(found: Status) -> pd.DataFrame:
    """One row per run and prepared set; what one of them does not have is empty."""
    runs = [{"kind": "run", "name": run.run, **asdict(run), "age_seconds": round(run.age)} for run in found.runs]
    stores = [{"kind": "store", "name": s.store, **asdict(s), "age_seconds": round(s.age)} for s in found.stores]
    names = ["kind", "name", "state", "epoch", "epochs", "val", "test", "dataset", "samples", "fingerprint", "bytes"]
    columns = [*names, "shards", "age_seconds", "note", "command"]
    return pd.DataFrame([*runs, *stores], columns=columns, dtype=object)
