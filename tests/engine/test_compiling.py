"""`train.compile`: the same training through torch.compile, and checkpoints that know nothing of it.

The backends `eager` and `aot_eager` trace as `inductor` does, without its code; one slow test builds real code.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import emoji_recipe, finish, make_session, mfeat_recipe, trained

from mla_cli.engine import compiling
from mla_cli.engine.predictions import read_predictions
from mla_cli.engine.rescore import score_dataset
from mla_cli.errors import MlaError
from mla_cli.recipe import recipe_hash
from mla_cli.schema import Recipe


@pytest.fixture(autouse=True)
def fresh_compiler() -> Any:
    yield
    torch.compiler.reset()


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> list[int]:
    """Sessions compile by the backend of the parameter; the sizes of the batches that ran compiled."""
    sizes: list[int] = []
    own = compiling.compile_encoders

    def compile_encoders(encoders: Any, batch_size: int) -> Any:
        found = own(encoders, batch_size, getattr(request, "param", "aot_eager"))
        for encoder in found.values():
            run = encoder.compiled
            encoder.compiled = lambda inputs, run=run: (sizes.append(len(inputs)), run(inputs))[1]
        return found

    monkeypatch.setattr("mla_cli.engine.session.compile_encoders", compile_encoders)
    return sizes


def compiled(recipe: Recipe) -> Recipe:
    """The same recipe with `train.compile`."""
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"compile": True})})


def method_recipe(name: str) -> Recipe:
    """Three rounds: two full ones of 40 and a last of 16."""
    section = {"name": name} | ({"unimodal": {"modality": "mor"}} if name == "unimodal" else {})
    return mfeat_recipe(method=section, train={"batch_size": 40, "diagnostics": False})


# What methods do with an encoder: train alone, jointly, two backward passes through one forward, evaluation mode.
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("concat", "mmpareto", "reconboost")]


@pytest.mark.parametrize("name", ["mla", *SLOW])
def test_methods_train_alike_compiled_and_not(mfeat_store, data_dir: Path, backend, name: str) -> None:
    recipe = method_recipe(name)
    one, other = make_session(recipe, data_dir), make_session(compiled(recipe), data_dir)
    assert not one.method.compiled
    assert set(other.method.compiled) == set(other.method.encoders)
    torch.testing.assert_close(other.train_epoch(), one.train_epoch())
    assert set(backend) == {40}  # full batches, and only those
    (plain, _), (through, _) = one.state(), other.state()
    assert list(through) == list(plain)  # no `_orig_mod.`
    torch.testing.assert_close(through, plain)


@pytest.mark.parametrize("backend", ["eager"], indirect=True)
def test_a_compiled_run_ends_in_a_checkpoint_that_scores_uncompiled(
    emoji_store, data_dir: Path, tmp_path: Path, backend
) -> None:
    run = trained(compiled(emoji_recipe()), data_dir, tmp_path)
    assert backend
    own, again = read_predictions(run.predictions), finish(score_dataset(run, "emoji", data_dir))
    assert run.recipe().train.compile
    assert run.info()["state"] == "finished"
    test = own.of_split("test")
    assert len(test)
    place = {name: i for i, name in enumerate(again.ids)}
    same = again.logits[[place[name] for name in test.ids]]
    torch.testing.assert_close(torch.from_numpy(same), torch.from_numpy(test.logits), equal_nan=True)


def test_a_compiled_run_has_another_hash() -> None:
    recipe = mfeat_recipe()
    assert recipe.train.compile is False
    assert recipe_hash(compiled(recipe), "x") != recipe_hash(recipe, "x")


def test_more_modalities_than_torch_compiles_by_itself_are_all_compiled(mfeat_store, data_dir: Path, backend) -> None:
    recipe = mfeat_recipe(("mor", "fou", "zer", "kar"), train={"diagnostics": False})
    with torch.compiler.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        session = make_session(compiled(recipe), data_dir)
        session.train_epoch()
    assert len(backend) == 4 * 3


def test_a_frozen_encoder_is_not_compiled(mfeat_store, data_dir: Path) -> None:
    recipe = mfeat_recipe(encoders={"mor": {"frozen": True}}, train={"diagnostics": False})
    encoders = make_session(recipe, data_dir).method.encoders
    assert set(compiling.compile_encoders(encoders, 32, "eager")) == {"fou"}


def test_without_a_compiler_the_error_says_what_to_do(mfeat_store, data_dir: Path) -> None:
    def no_compiler(*_: Any) -> Any:
        raise RuntimeError("No working C++ compiler found\nSet TORCHDYNAMO_VERBOSE=1 for the internal stack trace")

    encoder = make_session(mfeat_recipe(), data_dir).method.encoders["mor"]
    broken = compiling.CompiledEncoder("mor", encoder, 4, no_compiler)  # type: ignore[arg-type]
    with pytest.raises(MlaError) as error:
        broken(torch.zeros(4, 6))
    assert error.value.message == (
        "`train.compile`: torch could not compile the encoder of `mor`: No working C++ compiler found"
    )
    assert "--set train.compile=false" in error.value.hint
    assert broken(torch.zeros(3, 6)).shape == (3, 8)  # another size runs uncompiled
