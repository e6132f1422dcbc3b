"""What the encoders that wrap another library's models share."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily


def real_then_fake(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """A `build` that works under torch's `FakeTensorMode` too, in which the cost of a recipe is counted.

    The libraries look at numbers while they build a model, and fake tensors have none: so it is built with real ones,
    which are replaced by fake ones of the same shapes afterwards. Without that mode it is `build` itself.
    """

    @wraps(build)
    def wrapped(*given: Any, **keys: Any) -> nn.Module:
        with unset_fake_temporarily() as active:
            network = build(*given, **keys)
        if active is None:
            return network
        mode: Any = active
        made: dict[int, Any] = {}  # what two modules share stays shared
        for module in network.modules():
            for held in (module._parameters, module._buffers):
                for name, real in held.items():
                    if real is not None:
                        held[name] = made.setdefault(id(real), mode.from_tensor(real))
        return network

    return wrapped
