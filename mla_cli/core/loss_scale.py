"""The loss scale of float16 (Micikevicius et al., ICLR 2018, arXiv 1710.03740): GradScaler around our optimisers.

Small gradients vanish in float16, so the loss is multiplied by a scale, and the gradients are divided by it before
anything else sees them. An optimiser whose gradients overflow does not step, and the scale halves; after 2,000 updates
without that it doubles. Nothing waits for the device: fused optimisers look at the overflow themselves.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

START = 2.0**16  # torch's


class LossScale:
    """One scale for all optimisers of a method; they are fused."""

    def __init__(self, device: torch.device, optimizers: Iterable[torch.optim.Optimizer]):
        self.device, self.scaler = device, torch.amp.GradScaler(device.type, init_scale=START)
        self.overflows = torch.zeros((), device=device)  # optimiser steps not taken since the epoch's start
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                # A fused SGD makes its momentum in its first step; if that one overflows, it leaves it uninitialised.
                for p in group["params"] if group.get("momentum") else ():
                    optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)

    def scaled(self, loss: Tensor) -> Tensor:
        """What to call `backward` on."""
        return self.scaler.scale(loss)

    def unscale(self, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Divide the gradients of optimisers about to step."""
        for optimizer in optimizers:
            self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Step, unless a gradient overflowed."""
        for found in self.scaler._found_inf_per_device(optimizer).values():
            self.overflows += found
        self.scaler.step(optimizer)

    def update(self) -> None:
        """After a round's step: halve or raise the scale."""
        self.scaler.update()

    def end_epoch(self) -> dict[str, float]:
        """The scale as it stands, and how many optimiser steps overflowed in the epoch."""
        facts = {"loss_scale": self.scaler.get_scale(), "overflows": float(self.overflows)}
        self.overflows.zero_()
        return facts

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        values = self.scaler.state_dict()
        return {
            "scale.factor": torch.tensor(values["scale"], dtype=torch.float64),
            "scale.growth": torch.tensor(values["_growth_tracker"]),
            "scale.overflows": self.overflows.clone(),
        }

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore `state`."""
        values = self.scaler.state_dict()
        values |= {"scale": float(tensors["scale.factor"]), "_growth_tracker": int(tensors["scale.growth"])}
        self.scaler.load_state_dict(values)
        self.overflows = tensors["scale.overflows"].to(self.device, copy=True)
