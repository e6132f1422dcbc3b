"""Fixtures for all tests: the three built-in data sets, prepared once a session, small and in one folder.

`emoji_store`, `digits_store` and `mfeat_store` are opened `Store`s; `data_dir` is the folder they lie in, to be given
to engine functions together with `features_of` (the recipe section they were prepared with). Treat them as read-only.
"""

import os
import signal
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tests share two cores

import pytest

from mla_cli.data.store import Store
from mla_cli.engine.executor import Local
from mla_cli.engine.prepare import prepare
from mla_cli.recipe import validate


def pytest_configure() -> None:
    """Answer Ctrl-C: a shell's background job ignores it, and so would every process that a test starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


FEATURES: dict[str, dict[str, Any]] = {
    "emoji": {
        "visual": {"kind": "image", "size": 16},
        "text": {"kind": "text", "tokens": "ngrams", "length": 48, "buckets": 512},
    },
    "digits": {
        "audio": {"kind": "fbank", "rate": 8000, "mels": 24, "frames": 64},
        "visual": {"kind": "image", "size": 14, "mode": "grey"},
    },
    "mfeat": {view: {"kind": "vector"} for view in ("mor", "fou", "zer", "kar", "fac", "pix")},
}


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def features_of() -> dict[str, dict[str, Any]]:
    """Data set -> the `features` section that its store was prepared with."""
    return FEATURES


def prepared(name: str, data_dir: Path) -> Store:
    recipe = validate({"dataset": {"name": name}, "features": FEATURES[name]}, "fixture")
    for _ in prepare(name, data_dir, recipe, executor=Local(1)):
        pass
    return Store.open(data_dir / name)


@pytest.fixture(scope="session")
def emoji_store(data_dir: Path) -> Store:
    """1,636 emoji: visual (3, 16, 16) uint8 and text (48,) int32, naturally paired, 8 classes."""
    return prepared("emoji", data_dir)


@pytest.fixture(scope="session")
def digits_store(data_dir: Path) -> Store:
    """70 recordings (1, 64, 24) float32 and 3,000 images (1, 14, 14) uint8, unpaired, 10 classes."""
    return prepared("digits", data_dir)


@pytest.fixture(scope="session")
def mfeat_store(data_dir: Path) -> Store:
    """2,000 digits in six feature vectors, 10 classes."""
    return prepared("mfeat", data_dir)
