"""`checkpointing: true` of the transformer encoders: the same bits; blocks are computed again for gradients only."""

import pytest
import torch
from torch import Tensor, nn

from mla_cli.encoders import cav_mae, m3ae

INPUTS = {
    "image": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)),
    "text": torch.tensor([[3, 7, 1, -1], [5, -1, -1, -1]]),
    "audio": torch.randn(2, 1, 48, 32, generator=torch.Generator().manual_seed(2)),
}


def built(kind: str, checkpointing: bool) -> nn.Module:
    torch.manual_seed(0)
    if kind == "audio":
        return cav_mae.build((1, 48, 32), None, depth=1, checkpointing=checkpointing)
    keys = {"image": {"input_shape": (3, 32, 32)}, "text": {"input_shape": (4,), "token_count": 9}}[kind]
    return m3ae.build(width=None, size="small", depth=2, checkpointing=checkpointing, **keys)  # type: ignore[arg-type]


def blocks_of(network: nn.Module) -> list[nn.Module]:
    return [part for part in network.modules() if type(part).__name__ == "Block"]


def counted(network: nn.Module) -> list[int]:
    """Grows by one number for every block that is computed."""
    calls: list[int] = []
    for number, block in enumerate(blocks_of(network)):
        block.register_forward_pre_hook(lambda *_, number=number: calls.append(number))
    return calls


def gradients(network: nn.Module, kind: str) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Features, and the gradients of two losses of one graph, one after the other, as some methods take them."""
    features = network(INPUTS[kind])
    parameters = list(network.parameters())
    first = torch.autograd.grad(features.square().sum(), parameters, retain_graph=True)
    return features.detach(), first + torch.autograd.grad(features.sin().sum(), parameters)


@pytest.mark.parametrize("kind", INPUTS)
def test_features_and_gradients_are_the_same_bits(kind: str) -> None:
    (plain, wanted), (found, same) = (gradients(built(kind, on), kind) for on in (False, True))
    assert torch.equal(found, plain)
    assert all(torch.equal(one, other) for one, other in zip(same, wanted, strict=True))


@pytest.mark.parametrize("kind", INPUTS)
def test_blocks_are_computed_again_for_gradients_only(kind: str) -> None:
    network, plain = built(kind, True), built(kind, False)
    calls, once = counted(network), counted(plain)
    assert len(blocks_of(network)) == 2
    with torch.no_grad():
        network(INPUTS[kind])
    assert calls == [0, 1]
    calls.clear()
    network(INPUTS[kind]).sum().backward()
    plain(INPUTS[kind]).sum().backward()
    assert calls == [0, 1, 1, 0]
    assert once == [0, 1]
