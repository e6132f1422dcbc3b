"""Where a run computes."""

import os

import torch

from mla_cli.errors import MlaError


def choose_device(name: str) -> torch.device:
    """`auto` takes CUDA, then MPS, then the CPU. Raises MlaError for a device that is not there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, there in available.items() if there)
    if name not in available:
        raise MlaError(f"no device named `{name}`", "choose auto, cpu, cuda or mps")
    if not available[name]:
        raise MlaError(f"device `{name}` is not available here", "use `--device auto` or `--device cpu`")
    return torch.device(name)


def accelerators(device: str) -> tuple[str, list[str]]:
    """(CUDA, what each of its devices is called in CUDA_VISIBLE_DEVICES), (MPS, [mps]), or (, []): the CPU."""
    if device in ("auto", "cuda") and torch.cuda.is_available():
        count = torch.cuda.device_count()
        named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        return "CUDA", named[:count] or [str(i) for i in range(count)]
    return ("MPS", ["mps"]) if device in ("auto", "mps") and torch.backends.mps.is_available() else ("", [])
