"""Nothing of `mla` asks the network: not at import, and not in a whole experiment on built-in data."""

import importlib
import pkgutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import mla

import mla_cli

SMALL = (
    "--set",
    "train.epochs=1",
    "--set",
    "dataset.limit=32",
    "--set",
    "shared_width=4",
)
IMPORT_ALL = """
import importlib, pkgutil, socket, sys
def refuse(*args, **options):
    raise AssertionError(f"the network was asked for {args}")
socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = refuse
import mla_cli
for module in pkgutil.walk_packages(mla_cli.__path__, "mla_cli."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(len([name for name in sys.modules if name.startswith("mla_cli.")]))
"""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Whom the network was asked for; every such call fails at once."""
    found: list[Any] = []

    def refuse(*args: Any, **_: Any) -> Any:
        found.append(args)
        raise OSError("this test has no network")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("create_connection", "getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)
    return found


def test_the_block_works(asked: list[Any]) -> None:
    with pytest.raises(OSError, match="no network"):
        socket.create_connection(("192.0.2.1", 80))
    with socket.socket() as one, pytest.raises(OSError, match="no network"):
        one.connect(("192.0.2.1", 80))
    assert len(asked) == 2


@pytest.mark.slow
def test_no_module_asks_when_it_is_imported() -> None:
    """Each of them, in a fresh process."""
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 100


def test_a_whole_experiment_asks_nobody(asked: list[Any], mfeat_store, data_dir: Path, folder: Path) -> None:
    """Train, evaluate and compare on built-in data, in this process."""
    places = ("--data-dir", data_dir, "--run-dir", folder / "runs")
    for method in ("mla", "concat"):
        output = mla("train", "--recipe", "mine.yaml", "--method", method, *SMALL, *places)
        assert output.code == 0, output.stderr
    assert mla("eval", "--missing-rate", 0.3, "--run-dir", folder / "runs").code == 0
    assert mla("status", *places).code == 0
    assert mla("compare", *(folder / "runs").glob("mine-*"), "--run-dir", folder / "runs").code == 0
    assert asked == []


@pytest.mark.slow
def test_preparing_a_grid_and_a_report_ask_nobody(asked: list[Any], folder: Path) -> None:
    """What starts worker processes talks to them over pipes of this machine, never over an address."""
    for words in (
        "prepare digits --workers 1",
        "train --recipe digits --set train.epochs=1 --set dataset.limit=400",
        "report",
        "recipes",
    ):
        output = mla(*words.split())
        assert output.code == 0, output.stderr
    assert asked == []


def test_every_module_is_walked() -> None:
    names = {module.name for module in pkgutil.walk_packages(mla_cli.__path__, "mla_cli.")}
    assert {"mla_cli.cli", "mla_cli.engine.train", "mla_cli.encoders.resnet18"} <= names
    assert importlib.util.find_spec("mla_cli.render") is not None
