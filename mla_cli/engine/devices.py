"""Where a run computes. Torch is imported only when that is asked."""

import os
from typing import TYPE_CHECKING

from mla_cli.errors import MlaError

if TYPE_CHECKING:
    import torch


def accelerator() -> str | None:
    """`cuda` or `mps`, whichever is here, CUDA first; None where there is only the CPU."""
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return next((name for name, there in available.items() if there), None)


def choose_device(name: str) -> "torch.device":
    """`auto` takes CUDA, then MPS, then the CPU. Raises MlaError for a device that is not there."""
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = accelerator() or "cpu"
    if name not in available:
        raise MlaError(f"no device named `{name}`", "choose auto, cpu, cuda or mps")
    if not available[name]:
        raise MlaError(f"device `{name}` is not available here", "use `--device auto` or `--device cpu`")
    return torch.device(name)


def accelerators(device: str) -> tuple[str, list[str]]:
    """(CUDA, what each of its devices is called in CUDA_VISIBLE_DEVICES), (MPS, [mps]), or (, []): the CPU."""
    import torch

    if device in ("auto", "cuda") and torch.cuda.is_available():
        count = torch.cuda.device_count()
        named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        return "CUDA", named[:count] or [str(i) for i in range(count)]
    return ("MPS", ["mps"]) if device in ("auto", "mps") and torch.backends.mps.is_available() else ("", [])


def autocast_dtype(precision: str) -> "torch.dtype | None":
    """What `train.precision` computes in, beside float32."""
    import torch

    return {"bf16": torch.bfloat16, "16": torch.float16}.get(precision)


def check_precision(precision: str, device: "torch.device") -> None:
    """Raise MlaError for a precision that a device does not train in."""
    if precision == "16" and device.type == "mps":  # its optimisers are not fused: each step would wait for the device
        raise MlaError("`train.precision: 16` does not train on mps", "use `--precision bf16` or `--precision 32`")
    if precision == "bf16" and device.type == "cuda":
        import torch

        if not torch.cuda.is_bf16_supported(including_emulation=False):
            name = torch.cuda.get_device_name(device)
            raise MlaError(f"`{name}` does not compute in bfloat16", "use `--precision 16` or `--precision 32`")
