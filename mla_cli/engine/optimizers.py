"""The optimisers that a recipe asks for: one per group of the method, so that a step of one modality moves no other."""

from typing import Any

import torch

from mla_cli.core.method import BaseMethod
from mla_cli.schema import Recipe


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
            optimizers[name] = torch.optim.SGD(parameters, momentum=chosen["momentum"], **shared)
        else:
            optimizers[name] = torch.optim.AdamW(parameters, **shared)
    method.optimizers = optimizers
    method.idle = tuple(name for name in method.groups() if name not in optimizers)
    return optimizers
