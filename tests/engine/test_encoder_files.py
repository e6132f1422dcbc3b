"""Encoder weights imported: the file is exactly what our encoders take, and gives the features of its tensors."""

import hashlib
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_line import mla
from layouts import hollow, shapes_of
from safetensors.torch import load_file
from torch import Tensor
from transformer_reference import cav_mae_audio, m3ae_image, m3ae_text

from mla_cli import registry
from mla_cli.core.layouts import LAYOUTS
from mla_cli.core.weights import load_weights
from mla_cli.engine.encoder_files import import_encoder
from mla_cli.schema import EncoderSection


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.fsync", lambda handle: None)


def random_state(layout: str, sides: dict[int, int], blocks: int = 1) -> dict[str, Tensor]:
    """A layout of fewer blocks with other sides, every tensor random; CAV-MAE without its visual half."""
    generator, found = torch.Generator().manual_seed(0), {}
    for name, shape in shapes_of(layout).items():
        number = next((int(part) for part in name.split(".") if part.isdecimal()), 0)
        if number >= blocks or name.startswith("blocks_v") or name.endswith("_v") or "_v." in name:
            continue
        size = [sides.get(side, side) for side in shape]
        if name == "image_embedding.weight":
            size[1] = 768  # 16 x 16 x 3 pixels, whatever the width
        scale = 0.5 if len(size) < 2 or "norm" in name else math.prod(size[1:]) ** -0.5
        found[name] = torch.randn(size, generator=generator) * scale
    return found


SMALL = {768: 384, 2304: 1152, 3072: 1536, 30522: 30}  # M3AE of size small, 30 tokens


def sections(stdout: str) -> dict[str, Any]:
    """The lines for a recipe, as YAML reads them."""
    found: dict[str, Any] = yaml.safe_load(stdout[stdout.index("encoders:") :])["encoders"]
    return found


def network_of(section: dict[str, Any], shape: tuple[int, ...], **keys: Any) -> tuple[torch.nn.Module, Any]:
    """An encoder built and filled from the printed section, as the engine does it."""
    asked = EncoderSection.model_validate(section)
    module = registry.load("encoders", asked.name)
    network = module.build(shape, asked.width, **asked.options(), **keys).eval()
    return network, load_weights("x", asked, network, getattr(module, "convert", None))


@pytest.mark.parametrize("form", ["pt", "module", "safetensors"])
def test_m3ae_gives_the_features_of_its_tensors(form: str) -> None:
    state = random_state("m3ae_base", SMALL)
    if form == "safetensors":
        from safetensors.torch import save_file

        save_file(state, "w.safetensors")
    else:
        torch.save(
            {"model": {("module." if form == "module" else "") + n: v for n, v in state.items()}, "epoch": 3}, "w.pth"
        )
    source = "w.safetensors" if form == "safetensors" else "w.pth"
    output = mla("import", source, "--layout", "m3ae", "--out", "m3ae.safetensors")
    assert output.code == 0, output.stderr
    assert output.stderr == ""
    lines = output.stdout.splitlines()
    millions = sum(value.numel() for value in state.values()) / 1e6
    assert lines[0] == f"wrote m3ae.safetensors: {len(state)} tensors, {millions:.1f} million parameters"
    assert lines[1] == (
        "layout m3ae (30 tokens, 1 blocks); tensors used: transformer 15, image input 3, text input 2; "
        "deliberately unused: none"
    )
    digest = hashlib.sha256(Path("m3ae.safetensors").read_bytes()).hexdigest()
    assert lines[2] == f"sha256 {digest}"
    torch.testing.assert_close(load_file("m3ae.safetensors"), state, rtol=0, atol=0)

    asked = sections(output.stdout)
    common = {"name": "m3ae", "weights": "m3ae.safetensors", "sha256": digest, "size": "small", "depth": 1}
    assert asked == {"visual": common, "text": common}
    images, texts = torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(1)), [[3, 7, 1, -1]]
    with torch.no_grad():
        network, report = network_of(asked["visual"] | {"pool": "mean_all"}, (3, 32, 48))
        assert (report.share, report.complete, report.missing) == (1.0, True, [])
        torch.testing.assert_close(network(images)[0], m3ae_image(images[0], state, 6).mean(0), rtol=1e-5, atol=1e-5)
        network, report = network_of(asked["text"] | {"pool": "mean_all"}, (4,), token_count=30)
        assert (report.share, report.complete, report.missing) == (1.0, True, [])
        torch.testing.assert_close(
            network(torch.tensor(texts))[0], m3ae_text(texts[0], state, 6)[0].mean(0), rtol=1e-5, atol=1e-5
        )


def test_m3ae_without_its_text_input_is_an_encoder_of_images() -> None:
    state = random_state("m3ae_base", SMALL)
    del state["text_embedding.weight"], state["encoder_text_type_embedding"]
    torch.save(state, "w.pt")
    written = import_encoder(Path("w.pt"), LAYOUTS["m3ae"], None, force=False)
    assert written.path == Path("w.safetensors")
    assert list(written.sections) == ["visual"]
    assert set(load_file("w.safetensors")) == set(state)


def test_cav_mae_gives_the_features_of_its_tensors_and_leaves_what_it_does_not_use() -> None:
    state = {name: value.half() for name, value in random_state("cav_mae", {}).items()}  # kept as they are
    state["mlp_head.weight"] = torch.zeros(5, 768)
    torch.save(state, "w.pth")
    output = mla("import", "w.pth", "--layout", "cav-mae")
    assert output.code == 0, output.stderr
    [(modality, section)] = sections(output.stdout).items()
    assert (modality, section["name"], section["depth"]) == ("audio", "cav_mae", 1)
    assert (
        "deliberately unused: audio blocks' norms for joint use 4, joint block's norms for both modalities 4, "
        in output.stdout
    )
    assert "decoder and heads 1" in output.stdout
    kept = load_file("w.safetensors")
    network, report = network_of(section, (1, 32, 128))
    assert (report.share, report.complete, report.missing, report.unexpected) == (1.0, True, [], [])
    assert {value.dtype for value in kept.values()} == {torch.float16}
    assert set(kept) == set(network.state_dict())  # exactly the names that our encoder consumes
    audio = torch.randn(1, 1, 32, 128, generator=torch.Generator().manual_seed(1))
    state = {name: value.float() for name, value in state.items()}
    own = state | {"pos_embed_a": state["pos_embed_a"].reshape(1, 8, 64, 768)[:, :, :2].reshape(1, 16, 768)}
    with torch.no_grad():
        torch.testing.assert_close(network(audio)[0], cav_mae_audio(audio[0, 0], own, 12), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "recorded"), [("m3ae", "m3ae_base"), ("cav-mae", "cav_mae")])
def test_the_recorded_sizes_import_whole(layout: str, recorded: str, tmp_path: Path) -> None:
    """Half a gigabyte each: no key is needed for the default sizes, and nothing of our encoders stays unfilled."""
    hollow(recorded, tmp_path)
    output = mla("import", f"{recorded}.pt", "--layout", layout, "--out", "w.safetensors")
    assert output.code == 0, output.stderr
    inputs: dict[str, Any] = {
        "visual": {"shape": (3, 256, 256)},
        "text": {"shape": (256,), "token_count": 30522},
        "audio": {"shape": (1, 1024, 128)},
    }
    kept, taken = set(load_file("w.safetensors")), set()
    for modality, section in sections(output.stdout).items():
        assert set(section) == {"name", "weights", "sha256"}
        with torch.device("meta"):
            _, report = network_of(section, **inputs[modality])
        assert (report.share, report.complete, report.missing, report.other_shape) == (1.0, True, [], [])
        taken |= set(report.matched)
    assert taken == kept
    assert kept <= set(shapes_of(recorded))


# ------------------------------------------------------------ refusals: nothing is written


class Payload:
    """Creates a file when it is unpickled by a reader that runs code."""

    def __reduce__(self):
        return (Path.touch, (Path("made"),))


def refused(*words: object, code: int = 1) -> str:
    before = {path.name: path.stat().st_mtime_ns for path in Path().iterdir()}
    output = mla("import", *words)
    assert (output.code, output.stdout) == (code, ""), output.stderr
    assert {path.name: path.stat().st_mtime_ns for path in Path().iterdir()} == before
    return output.stderr


def test_a_file_that_is_there_is_replaced_only_when_told() -> None:
    torch.save(random_state("m3ae_base", SMALL), "w.pt")
    Path("w.safetensors").write_text("mine")
    assert "error: `w.safetensors` exists\nhint: name another file with `--out`, or pass" in refused(
        "w.pt", "--layout", "m3ae"
    )
    assert mla("import", "w.pt", "--layout", "m3ae", "--force").code == 0
    message = refused("w.safetensors", "--layout", "m3ae", "--force")
    assert "error: `w.safetensors` is the checkpoint itself\n" in message
    assert "does not end in .safetensors" in refused("w.pt", "--layout", "m3ae", "--out", "x.bin")


def test_widths_that_no_encoder_of_ours_has() -> None:
    torch.save(random_state("m3ae_base", {768: 48, 2304: 144, 3072: 192, 30522: 30}), "w.pt")
    assert "error: `w.pt` is 48 wide, which is no size of `m3ae`\nhint: its sizes are small 384" in refused(
        "w.pt", "--layout", "m3ae"
    )
    torch.save(random_state("cav_mae", {768: 48, 2304: 144, 3072: 192}), "w.pt")
    assert "error: `w.pt` is 48 wide; `cav_mae` is always 768" in refused("w.pt", "--layout", "cav-mae")


def test_code_in_a_file_is_not_run() -> None:
    torch.save({"model": random_state("m3ae_base", SMALL), "more": Payload()}, "w.pt")
    Path("w.pkl").write_bytes(pickle.dumps(Payload()))
    for name in ("w.pt", "w.pkl"):
        refused(name, "--layout", "m3ae")
    assert not Path("made").exists()
    torch.load("w.pt", weights_only=False)
    assert Path("made").exists()  # it would have been


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("nofile.pt", "--layout", "m3ae"), 1, "error: no file `nofile.pt`\nhint: give a path to a checkpoint"),
        ((".", "--layout", "m3ae"), 1, "error: no file `.`"),
        (("w.pt", "--layout", "m3ea"), 1, "error: no layout named `m3ea`\nhint: did you mean `m3ae`?"),
        (("w.pt",), 2, "Missing option '--layout'"),
        (("w.pt", "--layout", "m3ae"), 1, "error: no file `w.pt`"),
        (("w.pt", "--layout", "m3ae", "--dataset", "cremad"), 2, "--dataset does not go with --layout m3ae"),
        (("w.pt", "--layout", "cav-mae", "--set", "seed=1"), 2, "--set does not go with --layout cav-mae"),
        (("w.pt", "--layout", "mla-released"), 2, "needs --dataset: cremad or"),
        (("w.pt", "--layout", "mla-released", "--out", "x"), 2, "--out does not go with --layout mla-released"),
        (("w.pt", "--layout", "m3ae", "--format", "xml"), 1, "error: no output format named `xml`"),
    ],
)
def test_wrong_words(words: tuple[str, ...], code: int, message: str) -> None:
    told = refused(*words, code=code)
    assert " ".join(message.split()) in " ".join(told.replace("│", " ").split())
