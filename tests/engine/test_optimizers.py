"""The optimisers are torch's to the bit, without what torch wraps around them."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import mfeat_recipe, same_bits
from torch import nn

from mla_cli.engine import optimizers
from mla_cli.recipe import dump_yaml

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"momentum": 0.9, "weight_decay": 0.01}),
    ("SGD", {"momentum": 0.0, "weight_decay": 0.0}),
    ("AdamW", {"weight_decay": 0.1}),
]


def small_net(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 2)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("kind", "settings"), KINDS)
def test_steps_and_states_equal_those_of_torch_bit_for_bit(
    kind: str, settings: dict[str, Any], dtype: torch.dtype
) -> None:
    nets = [small_net(dtype) for _ in range(2)]
    built = [
        getattr(library, kind)(list(net.parameters()), lr=0.1, fused=True, **settings)
        for library, net in zip((optimizers, torch.optim), nets, strict=True)
    ]
    assert isinstance(built[0], getattr(torch.optim, kind))
    for number in range(4):
        x = torch.randn(3, 5, generator=torch.Generator().manual_seed(number), dtype=dtype)
        for net, optimizer in zip(nets, built, strict=True):
            optimizer.param_groups[0]["lr"] = 0.1 / (number + 1)
            net(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            assert all(p.grad is None for p in net.parameters())
        if number == 1:  # go on from each other's states
            states = [optimizer.state_dict() for optimizer in built]
            built[0].load_state_dict(states[1])
            built[1].load_state_dict(states[0])
    ours, torchs = ({n: p.detach() for n, p in net.named_parameters()} for net in nets)
    assert same_bits(ours, torchs)
    first, second = (optimizer.state_dict() for optimizer in built)
    assert first["param_groups"] == second["param_groups"]
    torch.testing.assert_close(first["state"], second["state"], rtol=0, atol=0)


def test_gradients_can_be_zeroed_too() -> None:
    net = small_net(torch.float32)
    optimizer = optimizers.SGD(net.parameters(), lr=0.1)
    net(torch.ones(1, 5)).sum().backward()
    optimizer.zero_grad(set_to_none=False)
    assert all(p.grad is not None and not p.grad.any() for p in net.parameters())


def test_a_step_is_taken_without_gradients_and_leaves_them_on() -> None:
    net = small_net(torch.float32)
    optimizer = optimizers.AdamW(net.parameters(), lr=0.1)
    net(torch.ones(1, 5)).sum().backward()
    optimizer.step()
    assert torch.is_grad_enabled()
    assert all(p.is_leaf and p.requires_grad for p in net.parameters())


@pytest.mark.slow
def test_training_imports_no_compiler_and_no_decoder(mfeat_store, data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(dump_yaml(mfeat_recipe()))
    arguments = ["mla", "train", "--recipe", str(tmp_path / "tiny.yaml"), "--data-dir", str(data_dir), "--quiet"]
    heavy = [
        "torch._dynamo",
        "torch._inductor",
        "torchvision",
        "torchaudio",
        "av",
        "sklearn",
        "matplotlib",
        "scipy.stats",
    ]
    code = f"""if True:
        import sys
        sys.argv = {[*arguments, "--run-dir", str(tmp_path / "runs")]!r}
        from mla_cli.cli import main
        try:
            main()
        except SystemExit as end:
            assert not end.code
        print("imported:", *sorted(set({heavy!r}) & set(sys.modules)))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["imported:"]
    assert list(tmp_path.glob("runs/*/results.csv"))
