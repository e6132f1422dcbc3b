"""The optimisers that a recipe asks for: one per group of the method, so that a step of one modality moves no other.

They are torch's own, fused, without the wrappers that torch puts around their methods for its compiler and profiler:
those import the compiler (a second and more at start-up) and take nearly half of a tiny step. What they do is torch's,
to the bit.
"""

import inspect
from typing import Any

import torch

from mla_cli.core.method import BaseMethod
from mla_cli.schema import Recipe


class Unwrapped(torch.optim.Optimizer):
    """What `SGD` and `AdamW` below put in place of torch's wrapped methods; hooks of a step are not called."""

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)

    def zero_grad(self, set_to_none: bool = True) -> None:
        if not set_to_none:
            return super().zero_grad(set_to_none=False)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None


class SGD(Unwrapped, torch.optim.SGD):
    """`torch.optim.SGD`, called directly."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))
    step.hooked = True  # else torch wraps it again when one is made


class AdamW(Unwrapped, torch.optim.AdamW):
    """`torch.optim.AdamW`, called directly."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))
    step.hooked = True


def optimizer_settings(recipe: Recipe, group: str) -> dict[str, Any]:
    """optimizer, lr, momentum and weight_decay of one group; groups called `head...` follow the recipe's `head`."""
    settings = recipe.train.model_dump(include={"optimizer", "lr", "momentum", "weight_decay"})
    if group.startswith("head"):
        settings |= {key: value for key, value in recipe.head.model_dump().items() if value is not None}
    return settings


def build_optimizers(recipe: Recipe, method: BaseMethod, device: torch.device) -> dict[str, torch.optim.Optimizer]:
    """Give a method its optimisers, group -> optimiser; groups in which nothing trains have none and are idle."""
    optimizers: dict[str, torch.optim.Optimizer] = {}
    for name, parameters in method.groups().items():
        parameters = [p for p in parameters if p.requires_grad]
        if not parameters:
            continue
        chosen = optimizer_settings(recipe, name)
        shared = {"lr": chosen["lr"], "weight_decay": chosen["weight_decay"], "fused": device.type != "mps"}
        if chosen["optimizer"] == "sgd":
            optimizers[name] = SGD(parameters, momentum=chosen["momentum"], **shared)
        else:
            optimizers[name] = AdamW(parameters, **shared)
    method.optimizers = optimizers
    method.idle = tuple(name for name in method.groups() if name not in optimizers)
    return optimizers
