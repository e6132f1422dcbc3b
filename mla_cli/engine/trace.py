"""One step of a network on paper: what it keeps for the backward pass, and its FLOPs.

Call it on torch's fake tensors, which have shapes and no numbers. What autograd keeps is seen by saved-tensor hooks,
FLOPs are counted by torch's counter (a multiplication with its addition counts 2). Attention is the CPU's fused kernel,
which keeps no attention matrix; so do the fused kernels of accelerators.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TRACED = 2  # samples; batch normalisation needs two


@dataclass(frozen=True)
class Trace:
    """One forward and backward pass. Bytes kept: of each sample, and of the batch whatever its size; FLOPs a sample."""

    kept: int
    kept_fixed: int
    forward_flops: int
    step_flops: int

    def kept_at(self, batch_size: int) -> int:
        return self.kept_fixed + self.kept * batch_size


def trace(loss: "Callable[[int], Tensor]", own: "Iterable[Tensor]") -> Trace:
    """Run loss(n), a mean over n samples, forward and backward with two and with four samples; call it on fake tensors.

    own: weights and buffers, which are kept anyway. What is kept counts once by its storage, however many views or
    operations share it; copies of weights in half precision are what does not grow with the batch.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    weights = {tensor.untyped_storage()._cdata for tensor in own}
    kept: list[int] = []
    flops: list[tuple[int, int]] = []
    for count in (TRACED, 2 * TRACED):
        storages: dict[int, int] = {}
        held: list[Any] = []  # so that no address is used twice

        def keep(tensor: "torch.Tensor", storages: dict[int, int] = storages, held: list[Any] = held) -> "torch.Tensor":
            storage = tensor.untyped_storage()
            if storage._cdata not in weights:
                storages[storage._cdata] = storage.nbytes()
                held.append(storage)
            return tensor

        counter = FlopCounterMode(display=False, custom_mapping=cpu_attention())
        with counter:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                found = loss(count)
            forward = counter.get_total_flops()
            found.backward()
        kept.append(sum(storages.values()))
        flops.append((forward, counter.get_total_flops()))
    each = (kept[1] - kept[0]) // TRACED
    (forward, step), (more_forward, more_step) = flops
    return Trace(each, kept[0] - TRACED * each, (more_forward - forward) // TRACED, (more_step - step) // TRACED)


def cpu_attention() -> dict[Any, Any]:
    """FLOPs of the CPU's fused attention, which torch's counter does not know; by its own formulas for attention."""
    import torch
    from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

    def forward(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_backward_flop_count(gradient, query, key, value)

    aten = torch.ops.aten
    return {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
