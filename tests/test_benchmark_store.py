"""The simulated store of tests/benchmarks is a real one, and the memory that its benchmark reads is a process's own."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from mla_cli.data.store import Store
from mla_cli.engine.data import complete, load_data
from mla_cli.recipe import load_recipe

FOLDER = Path(__file__).parent / "benchmarks"


@pytest.fixture(scope="module")
def benchmarks() -> tuple[ModuleType, ModuleType]:
    """(`_big_store`, `memory`), which import each other by name as scripts do."""
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module("_big_store"), importlib.import_module("memory")
    finally:
        sys.path.remove(str(FOLDER))


def test_the_simulated_store_is_a_real_one(benchmarks: tuple[ModuleType, ModuleType], tmp_path: Path) -> None:
    big, memory = benchmarks
    big.write_store(tmp_path / "data" / "big", 200)
    store = Store.open(tmp_path / "data" / "big")
    recipe = complete(load_recipe(base=memory.RECIPE | {"dataset": {"name": "table", "store": "big"}}), store)
    data = load_data(recipe, store)
    assert [len(part) for part in data.splits.values()] == [120, 40, 40]
    assert data.facts["leakage"]["leaks"] is False
    for m, kind in big.KINDS.items():
        x = store.modality(m).take(data.splits["train"].rows[:, list(big.KINDS).index(m)]).astype(np.float64)
        axes = (0, 2, 3) if kind == "image" else (0,)
        mean, sd = data.normalisation[m]
        np.testing.assert_allclose(mean.ravel(), x.mean(axes), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(sd.ravel(), x.std(axes), rtol=1e-9)
    labels = np.array([int(name) for name in store.index["label"]])
    assert (store.modality("audio").take(np.arange(200))[:, : big.CLASSES].argmax(1) == labels).mean() > 0.5


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's counts")
def test_anonymous_memory_of_a_child_is_seen(benchmarks: tuple[ModuleType, ModuleType]) -> None:
    """100 MB that a grandchild holds for a moment; pages of files are no part of it."""
    _, memory = benchmarks
    hold = "import time; held = bytearray(100_000_000); time.sleep(0.3); print('held')"
    plain = memory.used(["-c", "import time; time.sleep(0.1)"])
    found = memory.used(["-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}], check=True)"])
    assert found.stdout == "held\n"
    assert found.anonymous - plain.anonymous > 100_000_000
    assert found.mapped < found.anonymous
    with pytest.raises(SystemExit, match="exit code 3"):
        memory.used(["-c", "raise SystemExit(3)"])
