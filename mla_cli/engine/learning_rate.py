"""Schedules of the learning rate. No torch: the rate is a number set before every round."""

import math

from mla_cli.schema import TrainSection


def learning_rate_factor(train: TrainSection, progress: float) -> float:
    """What the base learning rate is multiplied by after `progress` epochs (a fraction inside an epoch)."""
    warm = min(1.0, progress / train.warmup) if train.warmup > 0 else 1.0
    if train.schedule == "step":
        return warm * train.step_factor ** (int(progress) // train.step_epochs)
    if train.schedule == "cosine":
        return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, progress / train.epochs)))
    return warm
