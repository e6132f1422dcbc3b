"""A checkpoint of the released code becomes a run whose logits are those of its tensors, computed here by hand."""

import hashlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import raw_trees
import torch
import torch.nn.functional as F
from command_line import Output, mla
from layouts import shapes_of
from safetensors.torch import load_file
from tiny import finish
from torch import Tensor

from mla_cli.core.layouts import LAYOUTS
from mla_cli.data.store import Store
from mla_cli.datasets import cremad
from mla_cli.engine.executor import Local
from mla_cli.engine.imports import check_recipe, classes_hint, import_recipe, import_run, renamed
from mla_cli.engine.predictions import Predictions, read_predictions
from mla_cli.engine.prepare import prepare
from mla_cli.engine.run import Run
from mla_cli.errors import MlaError
from mla_cli.recipe import load_recipe

CLASSES = ["ANG", "DIS", "FEA", "HAP", "NEU", "SAD"]
SMALL = [  # the recipe's encoders and normalisation on smaller inputs
    word
    for pair in ("audio.frames=48", "audio.mels=32", "visual.size=32", "visual.frames=2")
    for word in ("--set", f"features.{pair}")
]
State = dict[str, Tensor]


def lively(seed: int, num_classes: int = 6) -> State:
    """The released layout with tensors that make logits differ between samples."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in shapes_of("mla_released").items():
        if name.startswith("fusion_module"):
            found[name] = torch.randn((num_classes, *shape[1:]), generator=generator)
        elif name.endswith("num_batches_tracked"):
            found[name] = torch.tensor(9)
        elif name.endswith("running_var"):
            found[name] = torch.rand(shape, generator=generator) + 0.5
        elif len(shape) == 4:  # He-normal by fan in
            found[name] = torch.randn(shape, generator=generator) * (2 / (shape[1] * shape[2] * shape[3])) ** 0.5
        else:
            found[name] = torch.rand(shape, generator=generator) * 0.5 + (0.25 if name.endswith("weight") else -0.25)
    return found


# ------------------------------------------------------------ ResNet-18 from plain functions


def by_hand(x: Tensor, state: State, net: str, learn: bool = False) -> Tensor:
    """(n, channels, H, W) -> (n, 512), of the tensors under `net`, in evaluation.

    learn: first set the statistics of batch normalisation to those of x, so that features differ between samples.
    """

    def conv(x: Tensor, name: str, stride: int) -> Tensor:
        weight = state[f"{net}.{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def norm(x: Tensor, name: str) -> Tensor:
        if learn:
            state[f"{net}.{name}.running_mean"] = x.mean((0, 2, 3))
            state[f"{net}.{name}.running_var"] = x.var((0, 2, 3))
        mean, var, scale, shift = (
            state[f"{net}.{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * scale + shift

    x = F.max_pool2d(F.relu(norm(conv(x, "conv1", 2), "bn1")), 3, 2, 1)
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = F.relu(norm(conv(x, f"{name}.conv1", stride), f"{name}.bn1"))
            y = norm(conv(y, f"{name}.conv2", 1), f"{name}.bn2")
            if stride == 2:
                x = norm(conv(x, f"{name}.downsample.0", 2), f"{name}.downsample.1")
            x = F.relu(x + y)
    return x.mean((2, 3))


def logits_by_hand(store: Store, rows: np.ndarray, state: State, order: list[str], learn: bool = False) -> np.ndarray:
    """(sample, modality, class) in the data set's order of classes. order: that of the head's rows."""
    audio = torch.from_numpy(store.modality("audio").take(rows[:, 0])).float()  # (n, 1, frames, mels), as it is
    visual = torch.from_numpy(store.modality("visual").take(rows[:, 1])).float() / 255
    mean, sd = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    frames = ((visual - mean) / sd).flatten(0, 1)
    features = {
        "audio": by_hand(audio, state, "audio_net", learn),
        "visual": by_hand(frames, state, "visual_net", learn).reshape(len(rows), -1, 512).mean(1),
    }
    weight, bias = state["fusion_module.fc_out.weight"], state["fusion_module.fc_out.bias"]
    logits = torch.stack([features[m] @ weight.T + bias for m in ("audio", "visual")], dim=1).numpy()
    return logits[..., [order.index(name) for name in CLASSES]]


# ------------------------------------------------------------ one import, looked at from all sides


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared tree of three actors, lists by actor, and a checkpoint."""
    folder = tmp_path_factory.mktemp("imports")
    raw_trees.make_cremad(folder / "raw", actors=3)
    recipe = load_recipe("cremad_released", [word for word in SMALL if word != "--set"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: None)
        patch.setattr(cremad, "BUILT_IN", True, raising=False)  # sound files: they need no process of their own
        finish(prepare("cremad", folder / "data", recipe, folder / "raw", store="cremad_released", executor=Local(1)))
    (folder / "lists").mkdir()
    for actor, split in ((1001, "train"), (1002, "val"), (1003, "test")):
        lines = [f"{actor}_DFA_{e}_XX.flv {e}\n" for e in raw_trees.EMOTIONS]
        (folder / "lists" / f"{split}.txt").write_text("".join(lines))
    state, store = lively(0), Store.open(folder / "data" / "cremad_released")
    logits = logits_by_hand(store, store.positions(["audio", "visual"]), state, CLASSES, learn=True)
    state["fusion_module.fc_out.bias"] -= torch.from_numpy(logits.mean((0, 1)))  # no class always wins
    content = {"model": {f"module.{n}": v for n, v in state.items()}, "optimizer": {"lr": 0.1}, "epoch": 70}
    torch.save(content, folder / "best.pth")
    return folder


def tensors_of(place: Path) -> State:
    """The checkpoint's tensors."""
    found = torch.load(place / "best.pth", weights_only=True)["model"]
    return {name.removeprefix("module."): value for name, value in found.items()}


def importing(place: Path, run_dir: Path, *words: object, file: str | Path = "best.pth") -> Output:
    common = ("--layout", "mla-released", "--dataset", "cremad", "--data-dir", place / "data", "--run-dir", run_dir)
    return mla("import", place / file, *common, *SMALL, *words)


@pytest.fixture(scope="module")
def imported(place: Path) -> tuple[Run, Output]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: None)
        output = importing(place, place / "runs", "--split-file", place / "lists", "--seed", 2)
    assert output.code == 0, output.stderr
    [path] = [path for path in (place / "runs").iterdir() if path.is_dir()]
    return Run(path), output


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda handle: None)


def checked_rows(place: Path, predictions: Predictions) -> tuple[Store, np.ndarray]:
    store = Store.open(place / "data" / "cremad_released")
    position = {name: i for i, name in enumerate(store.index["id"])}
    return store, store.positions(["audio", "visual"])[[position[name] for name in predictions.ids]]


def test_the_logits_are_those_of_the_checkpoints_tensors(place: Path, imported: tuple[Run, Output]) -> None:
    found = read_predictions(imported[0].predictions)
    assert (found.modalities, len(found), found.facts["classes"]) == (["audio", "visual"], 12, CLASSES)
    assert [CLASSES[label] for label in found.labels] == [name.split("_")[2] for name in found.ids]
    expected = logits_by_hand(*checked_rows(place, found), tensors_of(place), CLASSES)
    assert expected.std(axis=0).min() > 0.1  # samples differ, or equality would mean little
    np.testing.assert_allclose(found.logits, expected, rtol=1e-4, atol=1e-4)


def test_it_is_a_finished_run_that_says_where_it_comes_from(place: Path, imported: tuple[Run, Output]) -> None:
    run, output = imported
    names = {str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file()}
    weights = "checkpoints/best-e0000-r000000.safetensors"
    assert names == {
        "recipe.yaml", "run.json", "predictions.parquet", "results.csv", "results.md", "checkpoints/best.json", weights
    }  # fmt: skip
    assert {path.name for path in (place / "runs").iterdir()} == {run.name, ".last"}
    assert run.name.startswith("cremad_released-mla-s2-f0-")
    info = run.info()
    source = info["imported"]
    assert (info["state"], source["layout"], source["unused"]) == ("finished", "mla-released", [])
    assert source["sha256"] == hashlib.sha256((place / "best.pth").read_bytes()).hexdigest()
    assert source["path"] == str(place / "best.pth")
    assert source["classes"] == CLASSES
    assert sorted(n for part in source["matched"].values() for n in part) == sorted(shapes_of("mla_released"))
    recipe = run.recipe()
    assert (recipe.method.hgm, recipe.fusion.rule, recipe.seed) == ("off", "fixed", 2)
    stored = load_file(run.path / weights)
    model = {n.removeprefix("model."): v for n, v in stored.items() if n.startswith("model.")}
    assert len(model) == len(shapes_of("mla_released"))  # nothing of ours is left unfilled
    torch.testing.assert_close(model["heads.shared.weight"], tensors_of(place)["fusion_module.fc_out.weight"])
    rows = pd.read_csv(run.path / "results.csv")
    assert set(rows["selected_on"]) == {"unknown (imported)"}
    assert (set(rows["checkpoint"]), set(rows["seed"]), set(rows["protocol"])) == ({"imported"}, {2}, {"file"})
    assert set(rows.loc[rows["output"] == "fused", "fusion"]) == {"fixed"}
    caption = "cremad, protocol file, test n = 6, IMPORTED: TRAINED ELSEWHERE, NOT KNOWN HOW ITS EPOCH WAS CHOSEN"
    assert caption in output.stdout and caption in (run.path / "results.md").read_text()


def test_what_the_file_does_not_say_is_told(imported: tuple[Run, Output]) -> None:
    run, output = imported
    assert (
        "best.pth: layout mla-released (6 classes); tensors used: audio encoder 120, visual encoder 120, "
        "shared head 2; deliberately unused: none\n"
    ) in output.stderr
    order = "read as ANG, DIS, FEA, HAP, NEU, SAD (sorted by name, as in the released code; `--classes` gives another)"
    assert order in output.stderr
    for text in (
        "whether these are the lists it was trained with cannot be seen from the checkpoint",
        "not known how its epoch was chosen",
        "`features.audio` is not what the released code takes",
        "`features.visual` is not what the released code takes",
    ):
        assert f"warning: {text}" in output.stderr
        assert any(warning.startswith(text) for warning in run.info()["warnings"])


def test_every_fusion_rule_scores_it(place: Path, imported: tuple[Run, Output]) -> None:
    run, _ = imported
    rules = ("fixed", "entropy", "entropy_batch")
    output = mla("eval", run.path, *(w for rule in rules for w in ("--fusion", rule)), "--format", "csv")
    assert output.code == 0
    rows = pd.read_csv(io.StringIO(output.stdout))
    found = rows[(rows["output"] == "fused") & (rows["metric"] == "accuracy")].set_index("fusion")["value"]
    test = read_predictions(run.predictions).of_split("test")
    logits = test.logits.astype(np.float64)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    weights = np.exp((p * np.log(p)).sum(-1))  # of minus the entropy
    p_over_batch = np.exp(logits) / np.exp(logits).sum(0, keepdims=True)  # all samples are in one batch
    shares = np.exp((p_over_batch * np.log(p_over_batch)).sum((0, 2)))  # of minus the entropy, one per modality
    expected = {
        "fixed": 0.55 * logits[:, 0] + 0.45 * logits[:, 1],
        "entropy": (weights[..., None] * logits).sum(1) / weights.sum(1)[:, None],
        "entropy_batch": (shares[:, None] * logits).sum(1) / shares.sum(),
    }
    assert all(len(set(fused.argmax(1))) > 1 for fused in expected.values())
    assert any(expected["fixed"].argmax(1) != expected["entropy"].argmax(1))
    for rule, fused in expected.items():
        assert found[rule] == pytest.approx((fused.argmax(1) == test.labels).mean())
    assert set(rows["selected_on"]) == {"unknown (imported)"}
    for words in (("--missing-rate", "0.3", "--mask-seeds", "0..1"), ("--pattern", "subset")):
        assert mla("eval", run.path, *words).code == 0


def test_its_model_scores_a_prepared_set(place: Path, imported: tuple[Run, Output]) -> None:
    run, _ = imported
    again = mla("eval", run.path, "--dataset", "cremad_released", "--data-dir", place / "data", "--format", "csv")
    assert again.code == 0, again.stderr
    stored = mla("eval", run.path, "--format", "csv").stdout
    assert again.stdout.replace("cremad_released,file", "cremad,file") == stored


@pytest.mark.slow
def test_its_model_scores_a_table(place: Path, imported: tuple[Run, Output], tmp_path: Path) -> None:
    clip, out = "1003_DFA_ANG_XX", tmp_path / "p.parquet"
    (tmp_path / "new.csv").write_text(
        f"id,audio,visual\na,AudioWAV/{clip}.wav,VideoFlash/{clip}.flv\nb,,VideoFlash/{clip}.flv\n"
    )
    words = ("--table", tmp_path / "new.csv", "--root", place / "raw", "--out", out)
    scored = mla("eval", imported[0].path, *words)
    assert scored.code == 0, scored.stderr
    found, own = read_predictions(out), read_predictions(imported[0].predictions)
    expected = own.logits[list(own.ids).index(clip)]
    np.testing.assert_allclose(found.logits[0], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.logits[1, 1], expected[1], rtol=1e-4, atol=1e-4)
    assert np.isnan(found.logits[1, 0]).all()


def test_its_features_are_probed(place: Path, imported: tuple[Run, Output]) -> None:
    probed = mla("eval", imported[0].path, "--linear-probe", "--data-dir", place / "data")
    assert probed.code == 0, probed.stderr
    assert "linear probe: accuracy" in probed.stdout and "IMPORTED: TRAINED ELSEWHERE" in probed.stdout


def test_readers_of_a_history_say_that_there_is_none(imported: tuple[Run, Output]) -> None:
    run, _ = imported
    output = mla("eval", run.path, "--diagnostics")
    assert (output.code, output.stdout) == (1, "")
    assert f"error: `{run.path}` was imported: what its training did to each modality is not known\n" in output.stderr


def test_a_damaged_one_is_imported_again_not_trained(imported: tuple[Run, Output], tmp_path: Path) -> None:
    run = Run(Path(shutil.copytree(imported[0].path, tmp_path / "copy")))
    run.predictions.write_bytes(b"x")
    output = mla("eval", run.path)
    assert output.code == 1 and "hint: import it again with `mla " in output.stderr
    (run.path / "run.json").write_text("{")
    assert "mla train" in run.start_again  # nothing says any more that it was imported


# ------------------------------------------------------------ twice, in another order, interrupted


def test_the_same_again_is_refused(place: Path, imported: tuple[Run, Output]) -> None:
    run, _ = imported
    output = importing(place, place / "runs", "--split-file", place / "lists", "--seed", 2)
    assert (output.code, output.stdout) == (1, "")
    assert f"error: `{run.path}` already holds this checkpoint\nhint: evaluate it with `mla eval" in output.stderr


@pytest.mark.slow
def test_it_is_replaced_when_told_with_the_same_bytes(place: Path, imported: tuple[Run, Output]) -> None:
    run, _ = imported
    before = {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()}
    forced = importing(place, place / "runs", "--split-file", place / "lists", "--seed", 2, "--force")
    assert forced.code == 0, forced.stderr
    after = {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()}
    assert {n for n in before if before[n] != after[n]} <= {"run.json"}  # which holds the command
    assert {path.name for path in (place / "runs").iterdir()} == {run.name, ".last"}


def test_the_heads_rows_are_put_in_the_order_of_the_data_set() -> None:
    state, layout = lively(0), LAYOUTS["mla-released"]
    order = ["NEU", "HAP", "SAD", "FEA", "DIS", "ANG"]
    found = renamed(state, layout, [order.index(name) for name in CLASSES])
    assert len(found) == len(state)
    for number, name in enumerate(CLASSES):
        row = order.index(name)
        assert torch.equal(found["heads.shared.weight"][number], state["fusion_module.fc_out.weight"][row])
        assert found["heads.shared.bias"][number] == state["fusion_module.fc_out.bias"][row]
    assert found["encoders.audio.network.conv1.weight"] is state["audio_net.conv1.weight"]


@pytest.mark.slow
def test_another_order_and_a_split_of_ours(place: Path, imported: tuple[Run, Output], tmp_path: Path) -> None:
    order = ["NEU", "HAP", "SAD", "FEA", "DIS", "ANG"]
    words = ("--set", "dataset.protocol=actor", "--seed", 2, "--classes", ",".join(order), "--quiet")
    output = importing(place, tmp_path, *words)
    assert output.code == 0, output.stderr
    text = "protocol actor did not choose the checkpoint's training samples: it may have been trained on"
    assert f"warning: {text}" in output.stderr
    [path] = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert path.name.startswith("cremad_released-mla-s2-f0-") and path.name != imported[0].name
    assert json.loads((path / "run.json").read_text())["imported"]["classes"] == order
    found = read_predictions(path / "predictions.parquet")
    expected = logits_by_hand(*checked_rows(place, found), tensors_of(place), order)
    np.testing.assert_allclose(found.logits, expected, rtol=1e-4, atol=1e-4)


def test_interrupted_it_leaves_no_run(place: Path, tmp_path: Path) -> None:
    overrides = [word for word in SMALL if word != "--set"]
    recipe = import_recipe(
        LAYOUTS["mla-released"], "cremad", None, overrides, {"dataset.split_file": str(place / "lists")}
    )
    steps = import_run(place / "best.pth", LAYOUTS["mla-released"], recipe, place / "data", tmp_path / "runs", "cpu")
    next(event for event in steps if "scoring" in getattr(event, "text", ""))
    [hidden] = [path for path in (tmp_path / "runs").iterdir() if path.is_dir()]
    assert hidden.name.startswith(".cremad_released-") and hidden.name.endswith(".importing")
    assert not list((tmp_path / "runs").glob("*/run.json"))  # where runs are looked for
    busy = importing(place, tmp_path / "runs", "--split-file", place / "lists")
    assert "error: another process is importing into" in busy.stderr
    steps.close()
    assert list((tmp_path / "runs").iterdir()) == []


# ------------------------------------------------------------ refusals: nothing is written


@pytest.mark.parametrize(
    ("source", "changes", "message", "hint"),
    [
        (
            "cremad_released",
            [],
            "protocol `file` needs the lists that the checkpoint was",
            "add `--split-file LISTS`; or",
        ),
        (
            "cremad_released",
            ["dataset.split_file=x", "shared_width=128", "method.hgm=rls", "encoders.visual.normalise=train"],
            "`method.hgm` is `rls`, `shared_width` is `128`, `encoders.visual.normalise` is `train`",
            "add `--set method.hgm=off --set shared_width=512 --set encoders.visual.normalise=imagenet`",
        ),
        (
            "cremad_released",
            ["dataset.split_file=x", "encoders.audio.weights=x.pt", "train.missing_rate=0.5"],
            "`train.missing_rate` is `0.5`, `encoders.audio.weights` is `x.pt`",
            "--set encoders.audio.weights=none`",
        ),
        (
            "cremad_released",
            ["dataset.modalities=[audio]"],
            "has the modalities audio, visual, the recipe has audio",
            "leave `dataset.modalities` out",
        ),
        ("cremad_small", [], "`encoders.audio.name` is `convnet`", "--set encoders.visual.name=resnet18"),
    ],
)
def test_a_recipe_of_another_model_is_refused(source: str, changes: list[str], message: str, hint: str) -> None:
    with pytest.raises(MlaError) as caught:
        check_recipe(load_recipe(source, changes), LAYOUTS["mla-released"])
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_a_recipe_that_fits_is_not_refused() -> None:
    for name in LAYOUTS["mla-released"].datasets:
        check_recipe(load_recipe(f"{name}_released", ["dataset.split_file=x"]), LAYOUTS["mla-released"])


def test_what_does_not_fit_is_refused(place: Path, tmp_path: Path) -> None:
    shapes = shapes_of("mla_released")
    zeros = {n: torch.zeros((), dtype=torch.int64 if "num_b" in n else None).expand(s) for n, s in shapes.items()}
    torch.save(zeros, tmp_path / "zeros.pth")  # hardly any bytes
    torch.save(zeros | {n: torch.zeros(31, *shapes[n][1:]) for n in shapes if "fc_out" in n}, tmp_path / "ks.pth")
    torch.save({"x": torch.zeros(1)}, tmp_path / "x.pth")
    lists = ("--split-file", place / "lists")
    for words, file, message in (
        (lists, "ks.pth", f"has 31 classes, `{place}/data/cremad_released` has 6\nhint: take a checkpoint that"),
        (
            (*lists, "--classes", "ANG,DIS"),
            "zeros.pth",
            "must name each of the data set's 6 classes once; look at `FEA`",
        ),
        ((*lists, "--set", "dataset.store=other"), "zeros.pth", "is not prepared under"),
        ((*lists, "--recipe", "kinetics_sounds"), "x.pth", "is for dataset `kinetics_sounds`, not `cremad`"),
        (("--dataset", "food101"), "x.pth", "is known for the data sets cremad, kinetics_sounds, not for `food101`"),
        (lists, "x.pth", "is not in layout `mla-released` (an audio-visual model of the paper's released code)"),
        (lists, place / "lists/train.txt", "is no checkpoint of torch"),
    ):
        output = importing(place, tmp_path / "runs", *words, file=tmp_path / file)
        assert (output.code, output.stdout) == (1, ""), output
        assert message in output.stderr, output.stderr
    assert not (tmp_path / "runs").exists()


def test_the_hint_names_the_lists_of_classes(tmp_path: Path) -> None:
    hint = classes_hint(load_recipe("kinetics_sounds_released"), Path("data"))
    assert "(ks31, ks32 or a file): `mla prepare kinetics_sounds --recipe kinetics_sounds_released" in hint
    assert hint.endswith("--force --classes LIST`")
