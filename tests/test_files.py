import contextlib
import errno
import hashlib
import os
from pathlib import Path

import pytest

from mla_cli import files
from mla_cli.errors import MlaError


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file"
    files.write_bytes(target, b"old")
    with files.whole_file(target) as file:
        file.write(b"ne")
        file.flush()
        assert target.read_bytes() == b"old"
        file.write(b"w")
    assert target.read_bytes() == b"new"
    assert entries(target.parent) == ["file"]


@pytest.mark.parametrize("before", [None, b"old"])
@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), OSError(errno.EIO, "broken")])
def test_an_error_inside_leaves_what_was_there(tmp_path: Path, before: bytes | None, error: BaseException) -> None:
    target = tmp_path / "file"
    if before is not None:
        target.write_bytes(before)

    def write() -> None:
        with files.whole_file(target) as file:
            file.write(b"half")
            raise error

    with pytest.raises(MlaError if isinstance(error, OSError) else type(error)):
        write()
    assert entries(tmp_path) == ([] if before is None else ["file"])
    assert before is None or target.read_bytes() == before


def test_everything_is_on_disk_before_the_name_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, real=real, name=name: (calls.append(name), real(*args))[1])
    files.write_text(tmp_path / "file", "content")
    assert calls == ["fsync", "replace", "fsync"]  # the file, its new name, the folder


def fail_with(number: int):
    def fail(*_: object, **__: object):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", fail_with(number))
    with pytest.raises(MlaError) as caught:
        files.write_bytes(target, b"new")
    assert caught.value.message == f"cannot write `{target}`: {os.strerror(number)}"
    assert caught.value.hint == "free some space and run the same command again; what was finished is kept"
    assert entries(tmp_path) == ["file"]
    assert target.read_bytes() == b"old"


@pytest.mark.parametrize("step", ["open", "replace", "mkdir"])
@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_read_only_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int) -> None:
    owner, name = {"open": ("builtins", "open"), "replace": (os, "replace"), "mkdir": (Path, "mkdir")}[step]
    if isinstance(owner, str):
        monkeypatch.setattr(f"{owner}.{name}", fail_with(number))
    else:
        monkeypatch.setattr(owner, name, fail_with(number))
    with pytest.raises(MlaError) as caught:
        files.write_bytes(tmp_path / "file", b"new")
    monkeypatch.undo()
    assert caught.value.message == f"cannot write `{tmp_path / 'file'}`: {os.strerror(number)}"
    assert "--data-dir" in caught.value.hint
    assert entries(tmp_path) == []


def test_a_place_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for call in (
        lambda: files.write_text(tmp_path / "file" / "below", "y"),
        lambda: files.make_folder(tmp_path / "file" / "below"),
        lambda: files.make_folder(tmp_path / "file"),
    ):
        with pytest.raises(MlaError, match=r"^cannot write `"):
            call()
    assert (tmp_path / "file").read_text() == "x"


def test_a_file_system_that_cannot_sync_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync
    opened: list[int] = []
    monkeypatch.setattr(os, "open", lambda *a, o=os.open, **k: (opened.append(o(*a, **k)), opened[-1])[1])
    monkeypatch.setattr(os, "fsync", lambda handle: fail_with(errno.EINVAL)() if handle in opened else real(handle))
    files.write_text(tmp_path / "file", "content")
    assert (tmp_path / "file").read_text() == "content"
    assert opened
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened[-1])  # closed all the same


def test_json_round_trip(tmp_path: Path) -> None:
    content = {"b": [1, 0.1, None, True], "a": {"é": "ü"}}
    files.write_json(tmp_path / "x.json", content)
    assert files.read_json(tmp_path / "x.json") == content
    text = (tmp_path / "x.json").read_text("utf-8")
    assert text.index('"a"') < text.index('"b"')
    assert "é" in text
    assert text.endswith("}\n")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_refuses_what_it_cannot_say(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "x.json", {"x": value})
    assert entries(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{}"])
def test_json_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(MlaError, match=r"x\.json` is not valid JSON: "):
        files.read_json(tmp_path / "x.json")


def test_json_that_is_no_object(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(MlaError, match=r"x\.json` holds no JSON object, but a list"):
        files.read_json(tmp_path / "x.json")
    with pytest.raises(MlaError, match=r"cannot read `.*y\.json`: No such file"):
        files.read_json(tmp_path / "y.json")


def test_sha256_of_a_file_larger_than_a_block(tmp_path: Path) -> None:
    content = os.urandom(3 << 19)  # 1.5 blocks
    (tmp_path / "x").write_bytes(content)
    assert files.sha256(tmp_path / "x") == hashlib.sha256(content).hexdigest()


# ---------------------------------------------------------------- sealed


def test_a_sealed_file_says_when_it_was_changed(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    content = {"b": [1, 0.1, None, True], "a": {"é": "ü"}}
    files.write_sealed(path, content)
    assert files.read_sealed(path) == content
    files.write_sealed(path, files.read_json(path))  # with its seal in it
    assert files.read_sealed(path) == content
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        found = content  # whatever is read must be what was written: only white space or the seal's name may differ
        with contextlib.suppress(MlaError):
            found = files.read_sealed(path)
        assert {key: value for key, value in found.items() if key in content} == content
    files.write_json(path, content)
    assert files.read_sealed(path) == content  # an earlier version wrote none
    assert not files.has_seal(path)
    path.write_text('{"x": NaN, "seal": "0"}')
    with pytest.raises(MlaError, match=r"x\.json` was damaged or edited"):
        files.read_sealed(path)


def test_emptying_a_folder_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").touch()
    inside = tmp_path / "inside"
    (inside / "deep" / "er").mkdir(parents=True)
    (inside / "link").symlink_to(tmp_path / "outside")
    (inside / "file").touch()
    files.empty_folder(inside)
    assert list(inside.iterdir()) == []
    assert (tmp_path / "outside" / "file").exists()
