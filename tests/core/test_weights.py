"""Weights from files: what is read, what is refused, what is told; and that another file is another run."""

import argparse
import json
import pickle
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tiny import events_and_value, finish, make_session, mfeat_recipe, run_bytes
from torch import Tensor, nn

from mla_cli import registry
from mla_cli.core.weights import load_weights, weights_digest
from mla_cli.encoders import convnet
from mla_cli.engine import train as engine
from mla_cli.engine.events import Epoch, Note
from mla_cli.engine.rescore import scoring_session
from mla_cli.errors import MlaError
from mla_cli.recipe import load_recipe, recipe_hash
from mla_cli.schema import EncoderSection

State = dict[str, Tensor]


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return convnet.build((3, 8, 8), None, channels=4, stages=2)


def section(path: Path, **keys: Any) -> EncoderSection:
    return EncoderSection.model_validate({"name": "convnet", "weights": str(path), **keys})


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def refused(path: Path, **keys: Any) -> MlaError:
    """The error of loading a file; the network is as it was."""
    ours = network()
    with pytest.raises(MlaError) as caught:
        load_weights("visual", section(path, **keys), ours)
    assert caught.value.hint
    torch.testing.assert_close(ours.state_dict(), network().state_dict(), rtol=0, atol=0)
    return caught.value


WRAPPERS: dict[str, Callable[[State], Any]] = {
    "plain": lambda state: state,
    "model": lambda state: {"model": state, "epoch": 7, "optimizer": {"lr": 0.1}},
    "state_dict": lambda state: {"state_dict": state},
    "module": lambda state: {f"module.{name}": value for name, value in state.items()},
    "all": lambda state: {"state_dict": {"model": {f"module.{name}": value for name, value in state.items()}}},
    "half": lambda state: {name: value.half() if value.is_floating_point() else value for name, value in state.items()},
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_checkpoint_of_torch_fills_the_network(wrapper: str, legacy: bool, tmp_path: Path) -> None:
    state, ours = network(1).state_dict(), network()
    file = tmp_path / "x.pth"
    torch.save(WRAPPERS[wrapper](state), file, _use_new_zipfile_serialization=not legacy)
    loaded = load_weights("visual", section(file), ours)
    rounding = {"rtol": 1e-3, "atol": 1e-6} if wrapper == "half" else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(ours.state_dict(), state, **rounding)
    assert (loaded.share, loaded.complete, loaded.matched) == (1.0, True, list(state))
    assert loaded.missing == loaded.unexpected == loaded.other_shape == []
    assert loaded.line() == f"weights of visual: {len(state)} tensors, 100.0% of its parameters, from `{file}`"


def test_safetensors_fill_the_network_and_the_hash_is_the_files(tmp_path: Path) -> None:
    state, ours, file = network(1).state_dict(), network(), tmp_path / "x.safetensors"
    safetensors.torch.save_file(state, file)
    digest = sha256(file.read_bytes()).hexdigest()
    loaded = load_weights("visual", section(file, sha256=digest.upper()), ours)
    torch.testing.assert_close(ours.state_dict(), state, rtol=0, atol=0)
    assert loaded.sha256 == digest == weights_digest("visual", section(file, sha256=digest))
    for call in (lambda s: load_weights("visual", s, network()), lambda s: weights_digest("visual", s)):
        with pytest.raises(MlaError, match=f"sha256 of `.*` is `{digest}`, not `{'0' * 64}`"):
            call(section(file, sha256="0" * 64))


def test_eight_bit_numbers_and_a_path_from_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    state, ours = network(1).state_dict(), network()
    small = {n: v.to(torch.float8_e4m3fn) if v.is_floating_point() else v for n, v in state.items()}
    safetensors.torch.save_file(small, tmp_path / "x.safetensors")
    assert load_weights("visual", section(Path("~/x.safetensors")), ours).complete
    torch.testing.assert_close(ours.state_dict(), state, rtol=0.1, atol=2e-3)


def test_what_does_not_match_is_listed_and_left(tmp_path: Path) -> None:
    state = network(1).state_dict()
    names = list(state)
    small = next(n for n in names if n.endswith("1.bias"))
    counter = next(n for n in names if n.endswith("num_batches_tracked"))
    change = {**state, "fc.weight": torch.zeros(3, 5), names[1]: torch.zeros(9), counter: torch.tensor(1.0)}
    del change[small]
    ours = network()
    loaded = load_weights("visual", section(saved(tmp_path / "x.pt", change)), ours)
    shapes = [
        f"{names[1]} (9,) float32 for {tuple(state[names[1]].shape)} float32",
        f"{counter} () float32 for () int64",
    ]
    assert (loaded.missing, loaded.unexpected, loaded.other_shape) == ([small], ["fc.weight"], shapes)
    assert not loaded.complete
    assert 0.9 < loaded.share < 1
    sizes = {n: p.numel() for n, p in ours.named_parameters()}
    assert loaded.share == pytest.approx(1 - (sizes[names[1]] + sizes[small]) / sum(sizes.values()))
    for name, value in ours.state_dict().items():
        expected = network().state_dict() if name in (small, names[1], counter) else state
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)
    for part in ("1 missing: ", "2 other shape: ", "1 unexpected: fc.weight"):
        assert part in loaded.line()
    assert json.dumps(loaded.facts())


def test_missing_counters_of_batch_normalisation_are_no_incomplete_load(tmp_path: Path) -> None:
    state = {n: v for n, v in network(1).state_dict().items() if "num_batches" not in n}
    loaded = load_weights("visual", section(saved(tmp_path / "x.pt", state)), network())
    assert loaded.complete
    assert len(loaded.missing) == 6


def test_a_load_under_nine_tenths_is_an_error_unless_strict_is_off(tmp_path: Path) -> None:
    state = network(1).state_dict()
    largest = max(state, key=lambda name: state[name].numel())
    file = saved(
        tmp_path / "x.pt", {**state, largest: torch.zeros(2, 3)} | {f"odd{i}": torch.zeros(1) for i in range(9)}
    )
    error = refused(file)
    assert f"fills {1 - state[largest].numel() / sum(p.numel() for p in network().parameters()):.1%}" in error.message
    assert f"1 other shape: {largest} (2, 3) float32 for {tuple(state[largest].shape)} float32" in error.message
    assert "9 unexpected: odd0, odd1, odd2, odd3, ..." in error.message
    assert "encoders.visual.strict: false" in str(error.hint)
    loaded = load_weights("visual", section(file, strict=False), ours := network())
    assert loaded.share < 0.9
    assert torch.equal(ours.state_dict()[largest], network().state_dict()[largest])
    assert "1 other shape" in loaded.line()


# ------------------------------------------------------------ files that are refused


class Payload:
    """Pickled, it is a call that makes a file."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("strict", [True, False])
def test_code_in_a_file_is_not_run(form: str, strict: bool, tmp_path: Path) -> None:
    target, file = tmp_path / "made", tmp_path / "x.pt"
    content = {"model": network(1).state_dict(), "more": Payload(target)}
    if form == "pickle":
        file.write_bytes(pickle.dumps(content["more"]))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
    error = refused(file, strict=strict)
    assert not target.exists()
    assert str(file) in error.message
    for text in (error.message, str(error.hint)):
        assert "weights_only" not in text  # torch's advice is to switch the safety off
    if form != "pickle":
        assert "holds more than tensors (`" in error.message
    torch.load(file, weights_only=False) if form != "pickle" else pickle.loads(file.read_bytes())  # noqa: S301
    assert target.exists()  # it would have


def test_python_objects_beside_the_weights_are_named(tmp_path: Path) -> None:
    error = refused(saved(tmp_path / "x.pt", {"model": network().state_dict(), "args": argparse.Namespace(lr=1)}))
    assert "(`argparse.Namespace`); Python objects in a file are never run" in error.message
    assert "state dict alone" in str(error.hint)


GARBAGE = {
    "empty": b"",
    "text": b"hello world " * 50,
    "html": b"<!DOCTYPE html><html></html>",
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "bytes": bytes(range(256)) * 9,
    "cut": b"PK\x03\x04" + bytes(90),
}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("content", GARBAGE)
def test_what_is_no_checkpoint_is_refused(content: str, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"x{suffix}"
    file.write_bytes(GARBAGE[content])
    kind = "no safetensors file" if suffix == ".safetensors" else "no checkpoint of torch"
    assert f"`{file}` is {kind}" in refused(file).message


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_cut_short_is_refused(suffix: str, tmp_path: Path) -> None:
    file, state = tmp_path / f"x{suffix}", network(1).state_dict()
    safetensors.torch.save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    file.write_bytes(file.read_bytes()[:-200])
    assert f"`{file}` is no " in refused(file).message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds no state dict"),
        ({}, "holds no state dict"),
        ({"net": {"x": torch.zeros(1)}}, "`net` is not a dense tensor"),
        ({"x": torch.zeros(1), "epoch": 3}, "`epoch` is not a dense tensor"),
        ({"x": torch.eye(2).to_sparse()}, "`x` is not a dense tensor"),
    ],
)
def test_what_is_no_state_dict_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    assert message in refused(saved(tmp_path / "x.pt", content)).message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])  # the last is more than a float32 holds
def test_values_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    state = network(1).state_dict()
    name = next(iter(state))
    state[name] = torch.full_like(state[name], value, dtype=torch.float64)
    assert f"values in `{name}` that are not finite" in refused(saved(tmp_path / "x.pt", state), strict=False).message


def test_files_that_are_not_there_or_named_otherwise(tmp_path: Path) -> None:
    (tmp_path / "x.dat").write_bytes(b"x")
    assert "no file `" in refused(tmp_path / "missing.pt").message
    assert "nothing is downloaded" in str(refused(Path("microsoft/resnet-18")).hint)
    assert "no file `" in refused(tmp_path).message
    assert "cannot tell what" in refused(tmp_path / "x.dat").message


# ------------------------------------------------------------ recipes and runs


def test_recipe_keys() -> None:
    def read(**keys: Any) -> EncoderSection:
        return load_recipe(None, base={"encoders": {"visual": {"name": "convnet", **keys}}}).encoders["visual"]

    assert (read().weights, read().sha256, read().strict) == (None, None, True)
    assert read(weights="none").weights is None
    for keys, message in (
        ({"weights": "x.pt", "sha256": "abc"}, "`encoders.visual.sha256`: must be 64 hexadecimal digits, got 'abc'"),
        ({"sha256": "0" * 64}, "`encoders.visual`: `sha256` is given without `weights`"),
        ({"weights": "x.pt", "strict": "no"}, "`encoders.visual.strict` must be bool"),
        ({"weights": 3}, "`encoders.visual.weights` must be string, got 3"),
    ):
        with pytest.raises(MlaError) as caught:
            read(**keys)
        assert message in caught.value.message
        assert caught.value.hint


def test_no_encoder_has_a_key_of_its_own_by_the_name_of_one_that_all_have() -> None:
    for name in registry.names("encoders"):
        assert not set(registry.options("encoders", name)) & set(EncoderSection.model_fields), name


@pytest.fixture
def file(mfeat_store: Any, data_dir: Path, tmp_path: Path) -> Path:
    """The weights of the encoder of `mor`, from another seed, with a head."""
    session = make_session(mfeat_recipe(seed=5), data_dir)
    state = session.method.encoders["mor"].network.state_dict()
    return saved(tmp_path / "mor.pt", {"model": state | {"fc.weight": torch.zeros(2)}})


def recipe_with(file: Path, **keys: Any) -> Any:
    return mfeat_recipe(encoders={"mor": {"weights": str(file), **keys}})


def test_a_run_starts_from_the_file_says_so_once_and_keeps_it(
    file: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda handle: None)
    session, plain = make_session(recipe_with(file), data_dir), make_session(mfeat_recipe(), data_dir)
    start, own = session.method.encoders["mor"].network.state_dict(), plain.method.state_dict()
    wanted = torch.load(file, weights_only=True)["model"]
    torch.testing.assert_close(start, {n: v for n, v in wanted.items() if n != "fc.weight"}, rtol=0, atol=0)
    for name, value in session.method.state_dict().items():  # all else starts as without a file
        assert torch.equal(value, own[name]) or name.startswith("encoders.mor.network.")

    events, run = events_and_value(engine.train(recipe_with(file), data_dir, tmp_path / "runs", "cpu"))
    told = [event for event in events if isinstance(event, Note) and event.text.startswith("weights of mor")]
    assert len(told) == 1
    assert "1 unexpected: fc.weight" in told[0].text
    assert not told[0].warning
    stored = run.info()["weights"]["mor"]
    assert stored["sha256"] == sha256(file.read_bytes()).hexdigest()
    assert (stored["share"], stored["unexpected"], stored["missing"]) == (1.0, ["fc.weight"], [])
    assert stored["matched"] == list(start)
    file.unlink()  # a finished run needs it no more
    store = session.data.store
    scored = scoring_session(run, run.recipe(), store, session.data.splits, session.data.classes)
    assert scored.loaded == []


def test_a_resumed_run_goes_on_from_its_checkpoint_not_from_the_file(
    file: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda handle: None)
    whole = finish(engine.train(recipe_with(file), data_dir, tmp_path / "whole", "cpu"))
    begun = engine.train(recipe_with(file), data_dir, tmp_path / "cut", "cpu")
    next(event for event in begun if isinstance(event, Epoch))
    begun.close()
    events, run = events_and_value(engine.train(recipe_with(file), data_dir, tmp_path / "cut", "cpu", resume=True))
    assert not [event for event in events if isinstance(event, Note) and event.text.startswith("weights of mor")]
    assert run_bytes(run) == run_bytes(whole)
    assert run.info()["weights"] == whole.info()["weights"]


def test_a_partial_load_is_a_warning_in_run_json(file: Path, data_dir: Path, tmp_path: Path) -> None:
    recipe = mfeat_recipe(encoders={"mor": {"weights": str(file), "strict": False, "hidden": 13}}, train={"epochs": 1})
    events, run = events_and_value(engine.train(recipe, data_dir, tmp_path / "runs", "cpu"))
    [told] = [event for event in events if isinstance(event, Note) and event.text.startswith("weights of mor")]
    assert told.warning
    assert told.text in run.info()["warnings"]
    strict = recipe_with(file, hidden=13)
    with pytest.raises(MlaError, match=r"fills 0\.0% of the parameters of `mlp`"):
        finish(engine.train(strict, data_dir, tmp_path / "strict", "cpu"))
    assert not list((tmp_path / "strict").glob("*/run.json"))


def test_another_file_at_the_same_path_is_another_run(file: Path, data_dir: Path) -> None:
    def hashed(recipe: Any) -> str:
        session = make_session(recipe, data_dir)
        return recipe_hash(session.recipe, engine.run_fingerprint(session.recipe, session.data.store))

    first, without = hashed(recipe_with(file)), hashed(mfeat_recipe())
    assert hashed(recipe_with(file)) == first != without
    session = make_session(mfeat_recipe(), data_dir, training=False)
    assert engine.run_fingerprint(session.recipe, session.data.store) == session.data.store.fingerprint
    state = torch.load(file, weights_only=True)["model"]
    saved(file, {"model": {name: value + 1 for name, value in state.items()}})
    assert hashed(recipe_with(file)) != first
    file.unlink()
    with pytest.raises(MlaError, match=r"`encoders\.mor\.weights`: no file"):
        engine.run_fingerprint(recipe_with(file), session.data.store)


def test_the_files_digest_needs_no_torch(file: Path) -> None:
    import subprocess
    import sys

    code = f"""if True:
        import sys
        from mla_cli.core.weights import weights_digest
        from mla_cli.schema import EncoderSection
        weights_digest("mor", EncoderSection(name="mlp", weights={str(file)!r}))
        assert "torch" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", code], check=True)
