"""Per-epoch losses of a tiny MLA run on two views of mfeat, stored; a change of the numbers must be meant.

After a change that is meant, renew them (and say so in the changelog):

    OMP_NUM_THREADS=1 python tests/golden/test_losses.py
"""

import json
import tempfile
from pathlib import Path

import pytest

from mla_cli.engine.executor import Local
from mla_cli.engine.prepare import prepare
from mla_cli.engine.train import train
from mla_cli.recipe import load_recipe

STORED = Path(__file__).parent / "mfeat_mor_fou.json"
VIEWS = ("mor", "fou")
RECIPE = {
    "name": "golden",
    "dataset": {"name": "mfeat", "modalities": list(VIEWS)},
    "encoders": {m: {"name": "mlp", "hidden": 32} for m in VIEWS},
    "shared_width": 16,
    "method": {"name": "mla", "hgm": "rls"},
    "train": {"epochs": 5, "batch_size": 64, "lr": 0.02, "momentum": 0.9, "weight_decay": 0.0001, "threads": 1},
    "seed": 7,
}


def losses(data_dir: Path, run_dir: Path, hgm: str) -> list[dict[str, float]]:
    """Training losses and head leak of every epoch."""
    content = RECIPE | {"method": {"name": "mla", "hgm": hgm}}
    steps = train(load_recipe(None, base=content), data_dir, run_dir, "cpu")
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            history = stop.value.history()
            break
    names = [*(f"train_loss.{m}" for m in VIEWS), "head_leak"]
    return [{name: row[name] for name in names} for row in history]


@pytest.mark.parametrize("hgm", ["off", "rls"])
def test_losses_are_the_stored_ones(mfeat_store, data_dir: Path, tmp_path: Path, hgm: str) -> None:
    stored = json.loads(STORED.read_text("utf-8"))[hgm]
    found = losses(data_dir, tmp_path, hgm)
    assert len(found) == len(stored) == 5
    for now, then in zip(found, stored, strict=True):
        assert now == pytest.approx(then, rel=1e-3)


def test_the_stored_losses_tell_the_variants_apart() -> None:
    stored = json.loads(STORED.read_text("utf-8"))
    first, last = ({hgm: rows[epoch]["train_loss.mor"] for hgm, rows in stored.items()} for epoch in (0, -1))
    assert abs(last["off"] - last["rls"]) > 0.01 * last["off"]
    assert all(last[hgm] < first[hgm] for hgm in stored)  # it learns
    assert all(row["head_leak"] < other["head_leak"] for row, other in zip(stored["rls"], stored["off"], strict=True))


def renew() -> None:
    """Train both variants afresh and store their losses."""
    with tempfile.TemporaryDirectory() as folder:
        data_dir = Path(folder) / "data"
        for _ in prepare("mfeat", data_dir, executor=Local(1)):
            pass
        found = {hgm: losses(data_dir, Path(folder) / "runs", hgm) for hgm in ("off", "rls")}
    STORED.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    renew()
