"""Numbers on their way to the device that computes."""

import torch
from torch import Tensor


def moved(values: Tensor, device: torch.device) -> Tensor:
    """CPU tensor -> the same on the device, without a wait for what that is computing: on CUDA from pinned memory.

    A plain copy to CUDA ends when all work queued before it has ended, so one a step would make every step wait.
    """
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)
