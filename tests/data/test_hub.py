"""Folders and hub names: local folders need no network, hub names come from the cache, and nothing in them is run."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from mla_cli.data import hub
from mla_cli.data.hub import check_maker, folder_of, library, maker_digest, weights_in
from mla_cli.errors import MlaError
from mla_cli.specs import ExtractorSpec, ImageSpec, TextSpec

CONFIG = ("config.json",)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every look-up of a name fails at once; the names that were asked for."""
    asked: list[str] = []

    def refuse(host: Any, *_: Any, **__: Any) -> Any:
        asked.append(str(host))
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return asked


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub; the folder of `someone/tiny` in it."""
    root = tmp_path / "cache"
    monkeypatch.setattr(library("huggingface_hub.constants"), "HF_HUB_CACHE", str(root))
    return root / "models--someone--tiny"


def cached(cache: Path, *names: str) -> Path:
    """Files of a snapshot, as the hub's client keeps them."""
    snapshot = cache / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("a" * 40)
    for name in names:
        (snapshot / name).write_text("{}")
    return snapshot


def folder(path: Path, **files: dict[str, Any]) -> Path:
    path.mkdir(exist_ok=True)
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


def test_a_folder_asks_nobody(tmp_path: Path, no_network: list[str]) -> None:
    path = folder(tmp_path / "model", config={})
    assert folder_of(str(path), "key", CONFIG) == path
    assert no_network == []


def test_a_hub_name_is_taken_from_the_cache(cache: Path, no_network: list[str]) -> None:
    snapshot = cached(cache, "config.json", "pytorch_model.bin")
    assert folder_of("someone/tiny", "key", CONFIG) == snapshot
    assert weights_in("someone/tiny", "key") == snapshot / "pytorch_model.bin"
    assert no_network == []


@pytest.mark.parametrize("files", [(), ("README.md",)], ids=["nothing", "another file"])
def test_what_the_cache_lacks_is_one_error_without_network(
    cache: Path, no_network: list[str], files: tuple[str, ...]
) -> None:
    if files:
        cached(cache, *files)
    with pytest.raises(MlaError) as caught:
        weights_in("someone/tiny", "encoders.text.model")
    assert "`encoders.text.model`: no folder `someone/tiny`, and the Hugging Face hub" in caught.value.message
    assert "hf download someone/tiny --local-dir FOLDER" in caught.value.hint
    assert "`encoders.text.model: FOLDER`" in caught.value.hint and str(cache.parent) in caught.value.hint
    assert set(no_network) == {"huggingface.co"} and len(no_network) <= 2, "no trying again and again"


def test_the_hub_is_not_asked_where_its_client_is_told_to_stay_offline(
    cache: Path, no_network: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library("huggingface_hub.constants"), "HF_HUB_OFFLINE", True)
    with pytest.raises(MlaError, match="someone/tiny"):
        folder_of("someone/tiny", "key", CONFIG)
    assert no_network == []


@pytest.mark.parametrize("name", ["a/b/c", "/nowhere", "./model", "~/nothing-here", "two words", ""])
def test_what_is_no_hub_name_is_never_asked_for(name: str, no_network: list[str]) -> None:
    with pytest.raises(MlaError, match=r"no folder|has no"):
        folder_of(name, "key", ("no-such-file",))
    assert no_network == []


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(MlaError, match="is a file, not a folder") as caught:
        folder_of(str(tmp_path / "x.json"), "key", CONFIG)
    assert str(tmp_path) in caught.value.hint


@pytest.mark.parametrize("name", hub.CONFIGS)
def test_code_in_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    folder(tmp_path, config={})
    (tmp_path / name).write_text(json.dumps({"auto_map": {"AutoModel": "modeling.Mine"}}))
    with pytest.raises(MlaError, match="Python code of its own") as caught:
        folder_of(str(tmp_path), "key", CONFIG)
    assert "remove `auto_map`" in caught.value.hint


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff"])
def test_a_damaged_configuration_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(MlaError, match=r"config\.json"):
        folder_of(str(tmp_path), "key", CONFIG)


def test_weights_in_several_files_and_no_weights_at_all(tmp_path: Path) -> None:
    with pytest.raises(MlaError, match=r"has no `model.safetensors` or `pytorch_model.bin`"):
        weights_in(str(tmp_path), "key")
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(MlaError, match="lie in several files"):
        weights_in(str(tmp_path), "key")
    for name in ("pytorch_model.bin", "model.safetensors"):  # the safe one counts where both are there
        (tmp_path / name).write_bytes(b"")
        assert weights_in(str(tmp_path), "key") == tmp_path / name


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MlaError, match="`no_such_package` is not installed") as caught:
        library("no_such_package")
    assert "pip install 'mla-cli[hf]'" in caught.value.hint


def test_the_digest_covers_what_defines_a_tokenizer_and_nothing_else(tmp_path: Path) -> None:
    spec = TextSpec(tokens="tokenizer", vocabulary=str(folder(tmp_path / "a", tokenizer={"x": 1}, config={})))
    first = maker_digest(spec)
    (tmp_path / "a" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "a" / "config.json").write_text('{"changed": 1}')
    assert maker_digest(spec) == first
    assert maker_digest(spec, str(folder(tmp_path / "b", tokenizer={"x": 1}))) == first  # a copy elsewhere
    (tmp_path / "a" / "special_tokens_map.json").write_text("{}")
    assert maker_digest(spec) != first
    assert maker_digest(TextSpec()) is None and maker_digest(ImageSpec()) is None
    sound = ExtractorSpec(model=str(folder(tmp_path / "c", preprocessor_config={"rate": 1})))
    before = maker_digest(sound)
    folder(tmp_path / "c", preprocessor_config={"rate": 2})
    assert maker_digest(sound) != before


def test_a_changed_tokenizer_and_an_encoder_with_another_are_noticed(tmp_path: Path) -> None:
    own = folder(tmp_path / "own", tokenizer={"x": 1})
    other, bare = folder(tmp_path / "other", tokenizer={"x": 2}), folder(tmp_path / "bare", config={})
    spec = TextSpec(tokens="tokenizer", vocabulary=str(own))
    stored = maker_digest(spec)
    for model in (None, str(own), str(bare), "someone/tiny", str(folder(tmp_path / "copy", tokenizer={"x": 1}))):
        check_maker("text", spec, stored, model)
    with pytest.raises(MlaError, match="made by the tokenizer of") as caught:
        check_maker("text", spec, stored, str(other))
    assert f"`features.text.vocabulary: {other}`" in caught.value.hint
    folder(tmp_path / "own", tokenizer={"x": 3})
    with pytest.raises(MlaError, match="is not the one that made the stored features of `text`"):
        check_maker("text", spec, stored, None)
    (own / "tokenizer.json").unlink()
    own.rmdir()
    check_maker("text", spec, stored, None)  # gone: the store is what it was
    check_maker("text", TextSpec(), None, str(other))
