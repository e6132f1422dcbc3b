"""What happens in a run, as plain facts: the engine yields them, `render.py` shows them, nobody prints inside."""

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, TypeVar


@dataclass(frozen=True)
class Note:
    """Something the user should read once; `warning` notes go into run.json too."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Started:
    """A run begins or goes on."""

    run: str
    epochs: int
    rounds: int
    first_epoch: int
    resumed: bool


@dataclass(frozen=True)
class Epoch:
    """One epoch is done: its line of `history.jsonl`."""

    number: int
    row: dict[str, Any]
    is_best: bool
    seconds: float


@dataclass(frozen=True)
class Running:
    """Where one of many runs is: epochs done of how many, its last fused accuracy (a fraction) on the split that
    chooses the epoch; or that it has ended."""

    run: str
    epoch: int
    epochs: int
    split: str = "val"
    accuracy: float | None = None
    ended: bool = False


@dataclass(frozen=True)
class Finished:
    """The run is complete; rows are its tidy results."""

    run: str
    rows: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Progress:
    """So many of so many units of work are done."""

    what: str
    done: int
    total: int


Event = Note | Started | Epoch | Running | Finished | Progress

Value = TypeVar("Value")
Steps = Generator[Event, None, Value]  # work that yields events and returns a value
