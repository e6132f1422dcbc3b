"""Where a run stands inside its epochs, and what to try when it diverges."""

from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeInt
from torch import Tensor


class Saved(BaseModel):
    """The values of a checkpoint that training goes on from."""

    model_config = ConfigDict(strict=True)
    epoch: NonNegativeInt
    round: NonNegativeInt
    best_epoch: NonNegativeInt
    best_accuracy: float
    loss_rounds: dict[str, list[NonNegativeInt]]
    outputs: list[str]
    skipped: dict[str, NonNegativeInt]
    method: dict[str, Any]


@dataclass
class Progress:
    """Where a run stands: `epoch` epochs are complete, `round` rounds of the next one.

    losses: output -> losses in nats of those rounds, on the device, one tensor of any number of them after the other;
    loss_rounds: output -> the round of each, from 0.
    """

    epoch: int = 0
    round: int = 0
    best_epoch: int = 0
    best_accuracy: float = -1.0
    losses: dict[str, list[Tensor]] = field(default_factory=dict)
    loss_rounds: dict[str, list[int]] = field(default_factory=dict)


def diverged_hint(rate: float, decay: float) -> str:
    """What to change after a loss that is not finite."""
    if rate <= 1 and rate * decay > 2:  # a step multiplies every weight by 1 - rate x decay, here beyond -1
        return "lower `train.weight_decay`, for example `--set train.weight_decay=0.0001`"
    lower = min(rate / 10, 0.01)  # far above it a tenth would diverge as well
    return f"lower `train.lr`, for example `--set train.lr={lower:g}`, or check the features"
