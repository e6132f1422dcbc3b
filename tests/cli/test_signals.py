"""Ctrl-C and SIGTERM: the first unwinds the command, the second leaves at once."""

import os
import signal
from collections.abc import Iterator

import pytest
from command_line import mla

from mla_cli.app import resuming
from mla_cli.engine import ablate as engine


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """An interrupted command leaves its handlers, as its process ends."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_unwinds_and_the_second_leaves_at_once(
    number: int, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []

    def ablate(*_):
        try:
            os.kill(os.getpid(), number)
            yield pytest.fail("it went on")
        finally:
            told.append("unwound")
            os.kill(os.getpid(), number)

    monkeypatch.setattr(engine, "ablate", ablate)
    monkeypatch.setattr("os._exit", lambda status: told.append(status))
    monkeypatch.setattr("sys.argv", ["mla", "ablate", "--recipe", "my recipe.yaml"])
    found = mla("ablate", "--recipe", "mfeat")
    assert (found.code, found.stdout) == (code, "")
    assert told[:2] == ["unwound", code]
    assert found.stderr.endswith(
        "interrupted; what is finished is kept. To go on: mla ablate --recipe 'my recipe.yaml'\n"
    )


def test_handlers_are_put_back_where_nothing_happened() -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert mla("recipes").code == 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_command_that_goes_on_can_leave_an_option_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["mla", "ablate", "--shard", "1/4", "--seeds", "0..4", "--shard=2/4"])
    assert resuming("ablate") == "mla ablate --shard 1/4 --seeds 0..4 --shard=2/4"
    assert resuming("ablate", without="--shard") == "mla ablate --seeds 0..4"
