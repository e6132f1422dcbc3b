"""What `checkpointing: true` saves and costs: a ViT-S of timm and a BERT-base of transformers, random weights, batch 4.

    python tests/benchmarks/checkpointing.py

Prints the activations that the forward pass keeps (parameters not counted), and the time of forward and backward as a
ratio: medians of 5 alternating repetitions on one thread.
"""

import statistics
import tempfile
import time
from typing import Any

import torch
from torch import Tensor, nn

from mla_cli.encoders import timm, transformers

REPETITIONS, BATCH = 5, 4


def kept(network: nn.Module, x: Tensor) -> float:
    """MiB that one forward pass keeps for the backward pass."""
    seen = {p.untyped_storage().data_ptr() for p in network.parameters()}
    tensors: list[Tensor] = []  # kept alive, so that no address is used twice
    total = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal total
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total += storage.nbytes()
        tensors.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(x)
    return total / 2**20


def seconds(network: nn.Module, x: Tensor) -> float:
    start = time.perf_counter()
    network(x).square().sum().backward()
    return time.perf_counter() - start


def main() -> None:
    from transformers import BertConfig

    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        BertConfig().save_pretrained(folder)
        bert: dict[str, Any] = {"model": folder, "pretrained": False, "token_count": 30_522}
        cases = {
            "vit_small_patch16_224, 224 x 224": (
                [timm.build((3, 224, 224), None, checkpointing=c) for c in (False, True)],
                torch.randn(BATCH, 3, 224, 224),
            ),
            "bert-base, 64 tokens": (
                [transformers.build((64,), None, checkpointing=c, **bert) for c in (False, True)],
                torch.randint(5, 30_000, (BATCH, 64), dtype=torch.int32),
            ),
        }
    for name, (networks, x) in cases.items():
        plain, saving = (kept(network, x) for network in networks)
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(REPETITIONS):
            for network, found in zip(networks, times, strict=True):
                found.append(seconds(network, x))
        ratio = statistics.median(times[1]) / statistics.median(times[0])
        print(f"{name}: {plain:.0f} MiB plain, {saving:.0f} MiB with checkpointing; time x {ratio:.2f}")
        print(f"RESULT {name}: kept | {saving / plain:.3f} | ratio | - | activations with checkpointing / without")
        print(f"RESULT {name}: time | {ratio:.3f} | ratio | - | forward and backward with checkpointing / without")


if __name__ == "__main__":
    main()
