"""The processes that train one run together (`torchrun`), and all that they say to each other.

Every step is data parallel and exact: a rank takes its share of the step's samples, its loss is their SUM divided by
the step's global count, which each rank knows beforehand, and one all_reduce adds up the gradients, the loss and
whatever else the method needs (the features' sum for HGM's h). So W ranks move the parameters as one process would.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mla_cli.errors import MlaError

if TYPE_CHECKING:
    from torch import Tensor, nn


class RankLost(MlaError):
    """Another rank has ended, or the network to it: this one cannot go on."""


@dataclass(eq=False)
class Ranks:
    """This process among those of a run: `rank` of `world`. The default is a process alone, and says nothing.

    exchanges: how many times gradients were added up.
    """

    rank: int = 0
    world: int = 1
    exchanges: int = 0

    @property
    def is_alone(self) -> bool:
        return self.world == 1

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes, prints and holds the lock."""
        return self.rank == 0

    def share(self, count: int, least: int = 1) -> slice:
        """Which of `count` samples are this rank's: consecutive, sizes equal within one, none below `least` but 0.

        Rank 0 always has some; where samples are few, the last ranks have none.
        """
        parts = max(1, min(self.world, count // least))
        if self.rank >= parts:
            return slice(count, count)
        return slice(self.rank * count // parts, (self.rank + 1) * count // parts)

    def add(self, tensors: "Sequence[Tensor]") -> "list[Tensor]":
        """The sums of each tensor over all ranks, by one all_reduce in the widest of their dtypes."""
        import torch
        import torch.distributed as dist

        wide = max((t.dtype for t in tensors), key=lambda dtype: dtype.itemsize)
        flat = torch.cat([t.detach().reshape(-1).to(wide) for t in tensors])
        with talking():
            dist.all_reduce(flat)
        self.exchanges += 1
        parts = flat.split([t.numel() for t in tensors])
        return [part.view(t.shape).to(t.dtype) for part, t in zip(parts, tensors, strict=True)]

    def add_gradients(self, parameters: "Sequence[nn.Parameter]", sums: "Sequence[Tensor]") -> "list[Tensor]":
        """Add up the parameters' gradients (None is zero) in place, and return the sums; one all_reduce.

        Sums take part in the parameters' dtype: h, the mean of float32 features, loses nothing that they had. They are
        copies: a loss is kept for the whole epoch, and as a view it would keep all the step's gradients with it.
        """
        import torch

        dtype = parameters[0].dtype if parameters else torch.float32
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        found = self.add([*gradients, *(s.to(dtype) for s in sums)])
        for parameter, gradient in zip(parameters, found, strict=False):
            parameter.grad = gradient
        return [total.clone() for total in found[len(parameters) :]]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in the order of the ranks."""
        if self.is_alone:
            return [value]
        import torch.distributed as dist

        found = [None] * self.world
        with talking():
            dist.all_gather_object(found, value)
        return found

    def told(self, value: Any) -> Any:
        """Rank 0's value, on every rank; what the others give is not looked at."""
        if self.is_alone:
            return value
        import torch.distributed as dist

        box = [value]
        with talking():
            dist.broadcast_object_list(box)
        return box[0]

    def copy_first(self, tensors: "Sequence[Tensor]") -> None:
        """Make these tensors, in place, what they are on rank 0."""
        if self.is_alone:
            return
        import torch.distributed as dist

        with talking():
            for tensor in tensors:
                dist.broadcast(tensor, 0)


ALONE = Ranks()


@contextmanager
def talking() -> Iterator[None]:
    """Raise RankLost where the other side is gone."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise RankLost(f"lost another process of this run: {reason}", "see which one ended, and why, above") from error
