"""What a recipe costs on paper, against counts by hand; and the measured steps."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from command_line import mla
from tiny import emoji_recipe, events_and_value, finish, mfeat_recipe
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from mla_cli import registry
from mla_cli.core.model import build_encoder
from mla_cli.engine import measure
from mla_cli.engine.cost import FLOAT, build_method, on_paper
from mla_cli.engine.measure import Task, cost, on_line
from mla_cli.engine.optimizers import build_optimizers
from mla_cli.engine.shapes import shapes_of
from mla_cli.engine.trace import Trace, trace
from mla_cli.errors import MlaError
from mla_cli.recipe import load_recipe
from mla_cli.schema import EncoderSection


def traced(network: nn.Module, *shape: int, dtype: torch.dtype | None = None) -> Trace:
    """The trace of a network through a cross-entropy, its output being the logits. Call it under fake tensors."""

    def loss(count: int) -> torch.Tensor:
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            logits = network(torch.zeros(count, *shape))
        return F.cross_entropy(logits.float(), torch.zeros(count, dtype=torch.int64))

    return trace(loss, [*network.parameters(), *network.buffers()])


# ---------------------------------------------------------------- by hand


def test_flops_of_a_linear_layer() -> None:
    with FakeTensorMode():
        found = traced(nn.Linear(30, 7), 30)
    assert found.forward_flops == 2 * 30 * 7
    assert found.step_flops == 2 * found.forward_flops  # and the gradient of its weight; none of its input is needed


def test_flops_of_a_convolution() -> None:
    with FakeTensorMode():
        layers = nn.Sequential(nn.Conv2d(3, 8, 5, stride=2, padding=2), nn.Flatten(), nn.Linear(8 * 16 * 16, 4))
        found = traced(layers, 3, 32, 32)
    conv, linear = 2 * 3 * 5 * 5 * 8 * 16 * 16, 2 * 8 * 16 * 16 * 4
    assert found.forward_flops == conv + linear
    assert found.step_flops == 2 * conv + 3 * linear


def test_flops_of_attention() -> None:
    """One block of M3AE: 4 patches and the cls token, width 384; both products of attention count."""
    with FakeTensorMode():
        encoder = build_encoder(
            "visual", EncoderSection.model_validate({"name": "m3ae", "size": "small", "depth": 1}), (3, 32, 32), None,
            384, 0,
        )  # fmt: skip
        found = traced(nn.Sequential(encoder, nn.Linear(384, 5)), 3, 32, 32)
    width, tokens = 384, 5
    block = 2 * tokens * width * (3 + 1 + 4 + 4) * width + 2 * 2 * tokens * tokens * width
    assert found.forward_flops == 2 * 4 * (3 * 16 * 16) * width + block + 2 * width * 5


def test_kept_activations_of_an_mlp() -> None:
    """Its input, the output of the ReLU (shared by ReLU and the second layer), the log-probabilities and the label."""
    with FakeTensorMode():
        found = traced(nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5)), 10)
    assert found.kept == 4 * (10 + 20 + 5) + 8
    assert found.kept_fixed == 4  # the sum of the classes' weights
    assert found.kept_at(64) == 64 * found.kept + 4


def test_half_precision_halves_activations_and_copies_weights() -> None:
    layers = ((1000, 1000), (1000, 1000))

    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(*layers[0]), nn.ReLU(), nn.Linear(*layers[1]))

    with FakeTensorMode():
        full, half = traced(network(), 1000), traced(network(), 1000, dtype=torch.bfloat16)
    # the logits go to the loss as float32 in both
    assert full.kept == 4 * 3000 + 8
    assert half.kept == 2 * 2000 + 4 * 1000 + 8
    assert half.kept_fixed == 2 * 1000 * 1000 + 4  # the second layer's weight in half precision, for its input
    assert half.forward_flops == full.forward_flops


def test_kept_is_what_real_tensors_keep() -> None:
    """The hooks see the same on real tensors of another batch size."""

    def network() -> nn.Module:
        section = EncoderSection.model_validate({"name": "convnet", "channels": 4, "stages": 2})
        return nn.Sequential(build_encoder("visual", section, (3, 24, 24), None, 8, 0), nn.Linear(8, 3))

    with FakeTensorMode():
        found = traced(network(), 3, 24, 24)
    real, kept = network(), {}
    own = {t.untyped_storage().data_ptr() for t in (*real.parameters(), *real.buffers())}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        F.cross_entropy(real(torch.rand(7, 3, 24, 24)), torch.zeros(7, dtype=torch.int64))
    assert sum(t.untyped_storage().nbytes() for t in kept.values()) == found.kept_at(7)


def resnet18_parameters(channels: int) -> int:
    """ResNet-18 up to its pooling, from its table: convolutions without bias, two numbers per normalised channel."""
    total, inside = channels * 64 * 49 + 2 * 64, 64
    for width in (64, 128, 256, 512):
        for block in range(2):
            first = inside if block == 0 else width
            total += 9 * first * width + 9 * width * width + 4 * width
            total += first * width + 2 * width if first != width else 0
        inside = width
    return total


def test_parameters_of_cremad() -> None:
    assert resnet18_parameters(3) == 11_689_512 - 1001 * 512 + 512 - 1000  # torchvision's, less its classifier
    with FakeTensorMode():
        recipe = load_recipe("cremad")
        method = build_method(recipe, shapes_of(recipe))
    for modality, channels in (("audio", 1), ("visual", 3)):
        assert sum(p.numel() for p in method.encoders[modality].parameters()) == resnet18_parameters(channels)


# ---------------------------------------------------------------- whole recipes


QUICK = ("cremad", "iemocap_released", "emoji")
EVERY = [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in registry.recipe_paths()]


@pytest.mark.parametrize("name", EVERY)
def test_every_shipped_recipe_builds_on_paper(name: str) -> None:
    recipe = load_recipe(name)
    shapes = shapes_of(recipe)
    with FakeTensorMode():
        method = build_method(recipe, shapes)
    assert list(method.encoders) == shapes.modalities
    assert shapes.num_classes == len(registry.load("datasets", recipe.dataset.name).CLASSES)
    wordpiece = [m for m, s in shapes.specs.items() if getattr(s, "tokens", "") == "wordpiece"]
    assert [note.split(":")[0] for note in shapes.notes] == wordpiece
    for m in wordpiece:
        assert shapes.tokens[m] == 30_522
    for m in shapes.modalities:
        assert sum(p.numel() for p in method.encoders[m].parameters()) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", registry.recipe_paths())
def test_every_shipped_recipe_has_a_cost(name: str) -> None:
    output = mla("recipes", "show", name, "--cost", "--no-measure", "--format", "csv")
    assert output.code == 0, output.stderr


@pytest.mark.parametrize("method", ["mla", "concat", "late"])
def test_memory_is_that_of_the_largest_step_or_of_all_together(method: str) -> None:
    recipe = mfeat_recipe(("mor", "fou", "pix"), method={"name": method}, dataset={"limit": None})
    paper = on_paper(recipe)
    memory = paper.memory(32)
    kept = {p.name: p.trace.kept_at(32) for p in paper.encoders}
    trained = {p.name: FLOAT * p.trained for p in paper.encoders}
    head = FLOAT * paper.head
    assert paper.joint == (method == "concat")
    assert memory["activations"] == (sum(kept.values()) if paper.joint else kept["pix"])
    assert memory["gradients"] == head + (sum(trained.values()) if paper.joint else trained["pix"])
    assert memory["weights and buffers"] >= head + sum(trained.values())
    assert memory["optimiser states"] == head + sum(trained.values())  # sgd with momentum
    assert memory["projection of HGM"] == (8 * 8 * 8 if method == "mla" else 0)
    assert paper.largest == "pix"


def test_a_method_of_one_modality_costs_that_one() -> None:
    recipe = mfeat_recipe(("mor", "pix"), method={"name": "unimodal", "unimodal": {"modality": "pix"}})
    assert [part.name for part in on_paper(recipe).encoders] == ["pix"]
    assert len(measure.measure(Task(recipe, shapes_of(recipe), 4, 1)).seconds) == measure.REPEATS


@pytest.mark.parametrize(
    ("train", "head"),
    [
        ({"optimizer": "sgd"}, {}),
        ({"optimizer": "sgd", "momentum": 0.0}, {}),
        ({"optimizer": "adamw"}, {}),
        ({"optimizer": "adamw"}, {"optimizer": "sgd"}),
    ],
)
def test_optimiser_states_are_those_of_real_optimisers(train: dict[str, Any], head: dict[str, Any]) -> None:
    recipe = mfeat_recipe(train=train, head=head)
    paper, shapes = on_paper(recipe), shapes_of(recipe)
    method = build_method(recipe, shapes)
    held = 0
    for optimizer in build_optimizers(recipe, method, torch.device("cpu")).values():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        held += sum(
            value.numel()
            for state in optimizer.state.values()
            for key, value in state.items()
            if isinstance(value, torch.Tensor) and key != "step"
        )
    assert paper.memory(1)["optimiser states"] == 4 * held


def test_checkpointing_keeps_less_and_says_what_comes_on_top() -> None:
    sizes = ["features.visual.size=32", "encoders.visual={name: m3ae, size: small, depth: 1}"]
    sizes.append("dataset.modalities=[visual]")
    plain = on_paper(load_recipe("mvsa_small", sizes))
    saving = on_paper(load_recipe("mvsa_small", [*sizes, "encoders.visual.checkpointing=true"]))
    assert saving.encoders[0].trace.kept < plain.encoders[0].trace.kept / 2
    assert saving.encoders[0].step_flops > plain.encoders[0].step_flops
    assert any("computed again" in note for note in saving.notes)
    assert not any("computed again" in note for note in plain.notes)


# ---------------------------------------------------------------- what is not known


def test_widths_of_built_in_vectors_come_from_the_shipped_data() -> None:
    shapes = shapes_of(load_recipe("mfeat"))
    assert {m: shape[0] for m, shape in shapes.inputs.items()} == {
        "mor": 6, "fou": 76, "zer": 47, "kar": 64, "fac": 216, "pix": 240
    }  # fmt: skip


def test_a_table_is_known_only_from_its_store(tmp_path: Path) -> None:
    recipe = load_recipe(
        None, base={"dataset": {"name": "table", "store": "my"}, "features": {"title": {"kind": "text"}}}
    )
    with pytest.raises(MlaError, match="the classes of `my` are known only from its prepared data"):
        shapes_of(recipe, data_dir=tmp_path)
    vector = load_recipe(None, base={"dataset": {"name": "table"}})
    with pytest.raises(MlaError, match="the modalities of `table` are known only"):
        shapes_of(vector, data_dir=tmp_path)


def test_a_modality_that_the_data_lack_is_named() -> None:
    with pytest.raises(MlaError, match="`cremad` has no modality `audoi`") as error:
        shapes_of(load_recipe(None, base={"dataset": {"name": "cremad", "modalities": ["audoi"]}}))
    assert "`audio`" in error.value.hint


def test_a_prepared_store_fills_what_the_recipe_leaves_open(mfeat_store, data_dir: Path) -> None:
    recipe = load_recipe(None, base={"dataset": {"name": "mfeat", "modalities": ["zer"]}})
    assert shapes_of(recipe, data_dir=data_dir).inputs == shapes_of(recipe).inputs == {"zer": (47,)}


# ---------------------------------------------------------------- measured


def test_a_measured_round_is_the_methods_own() -> None:
    for method in ("mla", "concat", "reconboost"):
        recipe = emoji_recipe(
            method={"name": method},
            features={"visual": {"kind": "image", "size": 16}, "text": {"kind": "text", "length": 8, "buckets": 64}},
        )
        found = measure.measure(Task(recipe, shapes_of(recipe), 4, 1))
        assert len(found.seconds) == measure.REPEATS
        assert all(second > 0 for second in found.seconds)
        assert found.peak is None or found.peak >= 0


def test_what_does_not_fit_into_memory_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "physical_memory", lambda: 10)
    monkeypatch.setattr(measure, "run_tasks", lambda *_, **__: pytest.fail("it was tried"))
    notes, found = events_and_value(cost(mfeat_recipe()))
    assert found.measured == []
    assert [note.warning for note in notes] == [True, True]
    assert notes[0].text.startswith("not measured at batch 2: it needs ")


def test_a_measuring_process_that_dies_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from mla_cli.engine.executor import TaskDone

    monkeypatch.setattr(measure, "run_tasks", lambda *_, **__: iter([TaskDone(0, error=MlaError("it died", ""))]))
    with pytest.raises(MlaError, match="measuring failed: it died") as error:
        finish(cost(mfeat_recipe()))
    assert "--no-measure" in error.value.hint


@pytest.mark.parametrize(
    ("points", "expected"),
    [([(2, 1.0), (4, 2.0)], 32.0), ([(2, 1.5), (4, 2.0)], 17.0), ([(2, 1.0), (4, 1.0)], None), ([(2, 1.0)], None)],
)
def test_extrapolation_is_a_straight_line_that_rises(points: list[tuple[int, float]], expected: float | None) -> None:
    assert on_line(points, 64) == expected


# ---------------------------------------------------------------- the command


def test_show_prints_the_file_as_it_is() -> None:
    output = mla("recipes", "show", "cremad")
    assert output.code == 0
    assert output.stdout == registry.recipe_paths()["cremad"].read_text("utf-8")


def test_show_merges_overrides_and_prints_json() -> None:
    shown = mla("recipes", "show", "emoji", "--set", "train.epochs=3")
    assert "epochs: 3\n" in shown.stdout and "label_smoothing: 0.0\n" in shown.stdout
    content = json.loads(mla("recipes", "show", "emoji", "--format", "json", "--set", "seed=4").stdout)
    assert (content["seed"], content["train"]["optimizer"]) == (4, "sgd")


@pytest.mark.parametrize("style", ["csv", "markdown"])
def test_show_of_a_recipe_has_two_formats(style: str) -> None:
    output = mla("recipes", "show", "emoji", "--format", style)
    assert output.code == 2
    assert f"--format {style} is for --cost" in output.stderr


def test_show_names_the_nearest() -> None:
    assert mla("recipes", "show", "cremda").stderr == "error: no recipe named `cremda`\nhint: did you mean `cremad`?\n"


def test_cost_as_tables_and_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("recipes", "show", "mfeat", "--cost", "--no-measure")
    table = mla(*words)
    assert (table.code, table.stderr) == (0, "")
    for part in ("mfeat: on paper, 10 classes", "pix (mlp)", "head", "total", "memory of a step at batch 64, on paper"):
        assert part in table.stdout
    assert "measured" not in table.stdout
    few = ("recipes", "show", "mfeat", "--cost", "--no-measure", "--set", "dataset.modalities=[pix]")
    assert "| pix (mlp) | 240 |" in mla(*few, "--format", "markdown").stdout
    rows = json.loads(mla(*few, "--format", "json").stdout)
    assert {row["basis"] for row in rows} == {"paper"}
    (tmp_path / "rows.csv").write_text(mla(*words, "--format", "csv").stdout, "utf-8")
    found = pd.read_csv(tmp_path / "rows.csv")
    pix = found[(found["part"] == "pix") & (found["quantity"] == "parameters_trained")]["value"]
    assert pix.tolist() == [240 * 64 + 64 + 64 * 64 + 64]
    memory = found[found["quantity"] == "memory"].set_index("part")["value"]
    assert memory["projection of HGM"] == 8 * 64 * 64


@pytest.mark.slow
def test_cost_measured_through_the_command() -> None:
    output = mla("recipes", "show", "mfeat_mor_fou", "--cost")
    assert output.code == 0
    assert "measuring 5 steps at batch 2" in output.stderr
    assert "mfeat_mor_fou: measured on this CPU" in output.stdout
    assert "median of n = 5" in output.stdout
