"""Hostile inputs: one clear error or a listed problem, no code run, no hang, bounded memory (generator: `fuzz.py`)."""

import json
import os
import pickle
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import fuzz
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from command_line import mla
from fuzz_children import COLUMNS, PEAK, Tally, run_child, table
from media_files import tone, write_audio, write_clip, write_image
from PIL import Image
from tiny import mfeat_recipe

from mla_cli.bounded_yaml import MAX_BYTES, MAX_VALUES
from mla_cli.data import features, images
from mla_cli.data.features import compute
from mla_cli.data.media import BadMedia, decode_image
from mla_cli.data.store import Store
from mla_cli.datasets import _tables
from mla_cli.datasets import table as own_table
from mla_cli.errors import MlaError
from mla_cli.methods.mla import Method
from mla_cli.recipe import dump_yaml, load_recipe
from mla_cli.specs import ImageSpec, TextSpec, VectorSpec

# ---------------------------------------------------------------- mutated files of every kind


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> fuzz.World:
    return fuzz.World(tmp_path_factory.mktemp("fuzz") / "world", whole=False)


def test_the_sound_files_are_good(world: fuzz.World) -> None:
    found = {kind.name: kind.use(world, kind.place(world)) for kind in fuzz.OF_USERS}
    assert set(found.values()) == {"decoded"}, found


def test_a_number_makes_the_same_bytes_every_time(world: fuzz.World) -> None:
    fuzzer = fuzz.Fuzzer(world, fuzz.OF_USERS)
    numbers = range(len(fuzz.OF_USERS))
    assert [fuzzer.bytes_of(n) for n in numbers] == [fuzzer.bytes_of(n) for n in numbers]
    assert all(fuzzer.bytes_of(n) != fuzzer.sound[n] for n in list(numbers)[:10])


def test_mutated_files_of_every_kind_are_decoded_listed_or_refused(world: fuzz.World) -> None:
    fuzzer = fuzz.Fuzzer(world, fuzz.OF_USERS)
    outcomes = [fuzzer.one(number) for number in range(3 * len(fuzz.OF_USERS))]
    assert set(outcomes) == set(fuzz.OUTCOMES)


@pytest.mark.slow
def test_a_thousand_mutated_files_leave_no_traceback_no_hang_and_little_memory(tmp_path: Path) -> None:
    tally, number = Tally(), 0
    while number < 1000:
        number = run_child(tmp_path / "world", number, 1000 - number, None, tally)
    assert tally.bad == [], table(tally)
    assert {kind.name for kind in fuzz.KINDS} == set(tally.kinds)
    assert sum(sum(counts.values()) for counts in tally.kinds.values()) == 1000
    assert all(sum(counts[outcome] for counts in tally.kinds.values()) > 50 for outcome in COLUMNS[:3])
    assert 10**8 < tally.peak[0] < PEAK, tally.peak


def test_a_bug_in_a_method_keeps_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mfeat_store: Store, data_dir: Path
) -> None:
    """There is no blanket handler: what nobody foresaw is not dressed up as the user's mistake."""

    def step(self: Method, batch: Any) -> Any:
        return {"fused": torch.tensor(1 / 0)}

    monkeypatch.setattr(Method, "step", step)
    (tmp_path / "mine.yaml").write_text(dump_yaml(mfeat_recipe()))
    with pytest.raises(ZeroDivisionError):
        mla("train", "--recipe", tmp_path / "mine.yaml", "--data-dir", data_dir, "--run-dir", tmp_path / "runs")


# ---------------------------------------------------------------- pickles


class Payload:
    """Unpickled, it creates a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


@pytest.fixture
def witness(tmp_path: Path) -> Path:
    """The file that a payload would create; it works where it is run."""
    path = tmp_path / "created"
    with open(tmp_path / "proof", "w"):
        pass
    pickle.loads(pickle.dumps(Payload(path))).close()  # noqa: S301
    assert path.exists()
    path.unlink()
    return path


def refused(*words: object) -> str:
    """The error of a command, which must be one."""
    done = mla(*words)
    assert done.code == 1, done.stdout
    assert done.stderr.count("error: ") == 1
    assert "\nhint: " in done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("name", "form"),
    [("x.pt", "torch"), ("x.bin", "torch"), ("x.pth", "old"), ("x.pt", "pickle"), ("x.safetensors", "pickle")],
)
def test_a_checkpoint_with_a_pickled_payload_runs_nothing(
    tmp_path: Path, witness: Path, name: str, form: str, mfeat_store: Store, data_dir: Path
) -> None:
    file, content = tmp_path / name, {"model": {"layer.weight": torch.zeros(2)}, "extra": Payload(witness)}
    if form == "pickle":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "torch")
    witness.unlink(missing_ok=True)
    recipe = mfeat_recipe(encoders={"mor": {"weights": str(file)}})
    (tmp_path / "mine.yaml").write_text(dump_yaml(recipe))
    where = ("--data-dir", data_dir, "--run-dir", tmp_path / "runs")
    text = refused("train", "--recipe", tmp_path / "mine.yaml", *where)
    assert "Python objects in a file are never run" in text or "is no" in text
    for layout in ("m3ae", "cav-mae"):
        refused("import", file, "--layout", layout, "--out", tmp_path / "out.safetensors")
    assert not witness.exists()
    assert not (tmp_path / "out.safetensors").exists()


def test_arrays_with_a_pickled_payload_run_nothing(tmp_path: Path, witness: Path) -> None:
    objects = np.array([Payload(witness), None], dtype=object)
    np.save(tmp_path / "x.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "x.npz", x=objects)
    (tmp_path / "y.npy").write_bytes(pickle.dumps(Payload(witness)))
    with zipfile.ZipFile(tmp_path / "y.npz", "w") as archive:
        archive.writestr("x.npy", pickle.dumps(Payload(witness)))
    for name in ("x.npy", "x.npz", "y.npy", "y.npz"):
        with pytest.raises(BadMedia) as caught:
            compute(VectorSpec(), "vector", tmp_path, f"{name}::0")
        assert caught.value.kind == "undecodable"
        (tmp_path / "my.csv").write_text(f"id,label,vec\n1,a,{name}::0\n2,b,{name}::1\n")
        how = ("prepare", "table", "--table", tmp_path / "my.csv", "--root", tmp_path, "--data-dir", tmp_path / "data")
        assert "no row of `vec` can be read" in refused(*how)
    assert not witness.exists()


def pickled_parquet(folder: Path, witness: Path) -> list[Path]:
    """Tables with a payload as bytes, as pandas' own metadata, and as an extension type that pyarrow once unpickled."""
    load = pickle.dumps(Payload(witness))
    rows = 20
    columns = {"id": [str(i) for i in range(rows)], "label": ["a", "b"] * 10, "words": ["x", "y"] * 10}
    plain = pa.table(columns)
    extension = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": load}
    fields = [*list(plain.schema)[:2], pa.field("words", pa.binary(), metadata=extension)]
    tables = {
        "bytes": plain.set_column(2, "words", pa.array([load] * rows)),
        "extension": pa.Table.from_arrays([*plain.columns[:2], pa.array([load] * rows)], schema=pa.schema(fields)),
        "pandas": plain.replace_schema_metadata({b"pandas": json.dumps({"columns": load.hex()}).encode()}),
    }
    paths = []
    for name, content in tables.items():
        paths.append(folder / f"{name}.parquet")
        pq.write_table(content, paths[-1])
    return paths


def test_parquet_with_a_pickled_payload_runs_nothing(tmp_path: Path, witness: Path) -> None:
    for path in pickled_parquet(tmp_path, witness):
        done = mla("prepare", "table", "--table", path, "--root", tmp_path, "--data-dir", tmp_path / path.stem)
        assert done.code == (path.stem != "pandas"), done.stderr
        assert done.code == 0 or "column `words`" in done.stderr
        run = tmp_path / f"run-{path.stem}"
        run.mkdir()
        path.rename(run / "predictions.parquet")
        (run / "run.json").write_text('{"state": "finished"}')
        (run / "recipe.yaml").write_text(dump_yaml(load_recipe("emoji")))
        refused("eval", run)
    assert not witness.exists()


# ---------------------------------------------------------------- recipes


def laughs(depth: int) -> str:
    """Ten times ten times ... the same list."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, depth)]
    return "\n".join(lines)


def merges(depth: int) -> str:
    """Merge keys, which copy: each mapping takes the one before it twice."""
    return "\n".join(["a0: &a0 {x: 1}", *(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, depth))])


BAD_YAML = {
    "anchors": (laughs(30), f"more than {MAX_VALUES:,} values"),
    "merge keys": (merges(40), f"more than {MAX_VALUES:,} values"),
    "ring": ("a: &a {b: *a}", "an alias stands inside"),
    "deep": ("a: " + "[" * 5000, "nested deeper than 50"),
    "deep by aliases": ("\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 99))]), "deeper"),
    "deep blocks": ("\n".join(" " * i + "a:" for i in range(300)), "nested deeper than 50"),
    "digits": ("seed: " + "9" * 100_000, "a number of more than 40 digits"),
    "hexadecimal": ("seed: 0x" + "f" * 100_000, "a number of more than 40 digits"),
    "sexagesimal": ("seed: " + ":".join(["59"] * 50_000), "a number of more than 40 digits"),
    "python": ("a: !!python/object/apply:os.system ['touch created']", "could not determine a constructor"),
    "python name": ("a: !!python/name:os.system", "could not determine a constructor"),
    "twice": ("seed: 1\nseed: 2", "key `seed` stands there twice"),
    "surrogate": ('name: "\\ud800"', "half of a surrogate pair"),
    "nul": ("name: \x00", "special characters are not allowed"),
    "large": ("# " + "x" * MAX_BYTES, "bytes, which is no recipe"),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(BAD_YAML))
def test_hostile_yaml_is_one_error_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.chdir(tmp_path)
    text, problem = BAD_YAML[case]
    Path("mine.yaml").write_text(text)
    begun = time.process_time()
    message = refused("recipes", "show", "mine.yaml")
    assert problem in message
    assert len(message) < 500
    if text.startswith("seed: ") and "\n" not in text:
        assert problem in refused("recipes", "show", "emoji", "--set", text.replace(": ", "="))
    assert time.process_time() - begun < 5
    assert os.listdir() == ["mine.yaml"]


@pytest.mark.parametrize(
    "name",
    ["=cmd|' /C calc'!A0", "-rf", "@x", "+x", ".hidden", "..", "a/b", "a\\b", "a\nb", "\x1b[31m", "x" * 121, " "],
)
def test_a_name_that_is_no_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "mine.yaml").write_text(json.dumps({"name": name, "dataset": {"store": name}}))
    with pytest.raises(MlaError) as caught:
        load_recipe(str(tmp_path / "mine.yaml"))
    assert "`name` names a folder" in caught.value.message
    assert "`dataset.store` names a folder" in caught.value.message


def test_endless_values_are_cut_in_errors(tmp_path: Path) -> None:
    content = {"x" * 5000: 1, "train": {"lr": "y" * 5000, "optimizer": "z" * 5000}, "method": {"name": "w" * 5000}}
    (tmp_path / "mine.yaml").write_text(json.dumps(content))
    with pytest.raises(MlaError) as caught:
        load_recipe(str(tmp_path / "mine.yaml"))
    assert len(str(caught.value)) < 3000
    with pytest.raises(MlaError, match="is not `key=value`"):
        load_recipe("emoji", ["a." * 100_000 + "b=1"])


# ---------------------------------------------------------------- tables and lists


def scan(folder: Path, content: str | bytes, name: str = "my.csv") -> Any:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return own_table.scan(folder, folder / name)


def test_endless_tables_are_refused_before_they_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = time.process_time()
    with pytest.raises(MlaError, match=r"has 1000002 columns, at most 1000"):
        scan(tmp_path, "id,label" + ",c" * 10**6 + "\n")
    with pytest.raises(MlaError, match=r"has a line of more than 16,777,216 characters"):
        scan(tmp_path, b"id,label,words\n1,a," + b"x" * (2**24 + 10))
    with pytest.raises(MlaError, match="field larger than field limit"):
        scan(tmp_path, 'id,label,words\n1,a,"' + "x\n" * 10**5)
    assert time.process_time() - begun < 5
    monkeypatch.setattr(_tables, "MAX_CELLS", 10)
    with pytest.raises(MlaError, match="more than 10 cells"):
        scan(tmp_path, "id,label,words\n" + "1,a,x\n" * 10)
    monkeypatch.setattr(_tables, "MAX_CELLS", 10**6)
    monkeypatch.setattr(_tables, "MAX_TEXT", 100)
    with pytest.raises(MlaError, match="more than 100 bytes of cells"):
        scan(tmp_path, "id,label,words\n" + "".join(f"{i},a,words\n" for i in range(30)))


def test_a_parquet_bomb_is_refused_by_what_it_claims(tmp_path: Path) -> None:
    rows = 10**7
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int8)), pa.array(["a"]))
    path = tmp_path / "my.parquet"
    pq.write_table(pa.table({"id": column, "label": column, "words": column}), path)
    assert path.stat().st_size < 10**5
    with pytest.raises(MlaError, match="more than 20,000,000 cells"):
        own_table.scan(tmp_path, path)
    long = pa.array(["x" * (_tables.MAX_CELL + 1)] * 3)
    pq.write_table(pa.table({"id": ["1", "2", "3"], "label": ["a", "b", "a"], "words": long}), path)
    with pytest.raises(MlaError, match="column `words` has a cell of 131,073 characters"):
        own_table.scan(tmp_path, path)


def test_what_pandas_stores_beside_a_parquet_table_is_not_read(tmp_path: Path) -> None:
    frame = pd.DataFrame({"id": ["1", "2"], "label": ["a", "b"], "words": ["x y", "z"]}, index=[5, 7])
    frame.to_parquet(tmp_path / "my.parquet")
    assert list(own_table.scan(tmp_path, tmp_path / "my.parquet").modalities) == ["words"]
    content = pq.read_table(tmp_path / "my.parquet")
    for damage in (b"not json", b'{"index_columns": 3}', b'{"columns": [1]}', b"[" * 9999):
        pq.write_table(content.replace_schema_metadata({b"pandas": damage}), tmp_path / "my.parquet")
        assert list(own_table.scan(tmp_path, tmp_path / "my.parquet").rows["id"]) == ["1", "2"]


def test_formulas_stay_text(tmp_path: Path) -> None:
    formulas = ["=1+1", "+1", "-1", "@SUM(A1)", "=cmd|' /C calc'!A0"]
    found = scan(tmp_path, "id,label,words\n" + "".join(f"{i},{text},{text}\n" for i, text in enumerate(formulas)))
    assert sorted(found.classes) == sorted(formulas)
    assert list(found.rows["ref.words"]) == formulas


ASTRAY = {  # reference -> what is listed
    **dict.fromkeys(("nul\0.wav", "loop.wav", "pipe.wav", "gone.wav", "x" * 300 + ".wav", "~/x.wav"), "no such file"),
    **dict.fromkeys(("http://127.0.0.1:9/x.wav", "concat:good.wav|good.wav", "file:///etc/passwd.wav"), "no such file"),
    **dict.fromkeys(("subfile:start:0:end:9:good.wav", "data:audio/wav;base64,AAAA.wav", "C:\\x.wav"), "no such file"),
    **dict.fromkeys(("bad.wav#t=9999999999", "bad.wav"), "cannot decode"),
    **dict.fromkeys(("bad.wav#t=-1", "bad.wav#t=1e9,2"), "is not a fragment"),
}
OUTSIDE = ("../../etc/passwd", "/etc/passwd", "a/../../x.wav", "link.wav", "folder/passwd", "device.wav")


def test_references_that_lead_astray(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    write_audio(root / "good.wav", tone(0.2, 8000), 8000)
    (root / "bad.wav").write_bytes(b"RIFF")
    (root / "link.wav").symlink_to("/etc/passwd")
    (root / "folder").symlink_to("/etc")
    (root / "loop.wav").symlink_to(root / "loop.wav")
    (root / "device.wav").symlink_to("/dev/zero")
    os.mkfifo(root / "pipe.wav")  # reading it would wait for ever
    how = ("prepare", "table", "--table", root / "my.csv", "--root", root, "--data-dir", tmp_path / "data", "--check")
    cells = {f"s{i:02d}": cell for i, cell in enumerate(ASTRAY)}
    rows = ["id,label,sound", "g1,a,good.wav", "g2,b,good.wav", *(f'{name},a,"{cell}"' for name, cell in cells.items())]
    (root / "my.csv").write_text("\n".join(rows))
    done = mla(*how, "--modality", "sound=audio", "--workers", 1)
    assert done.code == 1
    for name, cell in cells.items():
        (line,) = [line for line in done.stdout.splitlines() if line.split()[:1] == [name]]
        assert ASTRAY[cell] in line, (cell, line)
    for cell in OUTSIDE:
        (root / "my.csv").write_text(f"id,label,sound\n1,a,{cell}\n2,b,good.wav\n")
        assert "lead outside of" in refused(*how, "--modality", "sound=audio")


def test_a_name_with_a_colon_is_no_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg would take `concat:` for a protocol that opens further files."""
    monkeypatch.chdir(tmp_path)
    write_clip(Path("a.mp4"), 0.3).rename("concat:a.mp4")
    assert features.check("video", Path(), "concat:a.mp4") is None


# ---------------------------------------------------------------- arrays, pictures, texts


def test_arrays_that_claim_too_much_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000000, 3), }\n"
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + b"\0" * 400)
    with open(tmp_path / "sparse.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (10**10,)})
        file.truncate(4 * 10**10 + 1000)  # takes no room on disk
    with (
        zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w") as member,
    ):
        monkeypatch.setattr(features, "MAX_ARRAY_BYTES", 10**6)
        member.write(b"\0" * (10**6 + 1))
    for ref, reason in (("x.npy::0", "undecodable"), ("sparse.npy", "bad_row"), ("bomb.npz::0", "undecodable")):
        with pytest.raises(BadMedia) as caught:
            compute(VectorSpec(), "vector", tmp_path, ref)
        assert caught.value.kind == reason, ref


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16", "F", "CMYK", "1"])
def test_a_picture_converted_in_strips_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (30, 40), dtype=np.uint8)
    if mode in ("I;16", "F"):
        picture = Image.fromarray(grey.astype(np.uint16) * 257 if mode == "I;16" else grey.astype(np.float32) / 255)
    else:
        picture = Image.fromarray(
            rng.integers(0, 256, (30, 40, 4), dtype=np.uint8), "RGBA" if mode != "CMYK" else "CMYK"
        )
        picture = picture.convert("RGB").convert(mode) if mode in ("P", "1") else picture.convert(mode)
    path = tmp_path / ("x.tiff" if mode in ("F", "CMYK") else "x.png")
    picture.save(path, **({"transparency": 3} if mode == "P" else {}))
    whole = {m: decode_image(path, ImageSpec(size=16, mode=m)) for m in ("rgb", "grey")}
    monkeypatch.setattr(images, "STRIP_PIXELS", 100)
    for m, expected in whole.items():
        assert np.array_equal(decode_image(path, ImageSpec(size=16, mode=m)), expected)


def test_decompression_bombs_are_refused_by_what_they_claim(tmp_path: Path) -> None:
    path = write_image(tmp_path / "x.png")
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    import zlib

    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    path.write_bytes(data)
    with pytest.raises(BadMedia, match=r"pixels"):
        decode_image(path, ImageSpec(size=8))


@pytest.mark.parametrize(
    "encoding", ["idna", "punycode", "undefined", "unicode_escape", "zlib", "rot13", "os", "\ud800", "x" * 999]
)
def test_encodings_that_no_text_file_has_are_refused(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "x.txt").write_text("some words")
    with pytest.raises(BadMedia) as caught:
        compute(TextSpec(), "text_file", tmp_path, f"x.txt#encoding={encoding}")
    assert caught.value.kind == "text_undecodable"


@pytest.mark.parametrize("number", [-1, 10**12, 1e300, "1e400", None, [1], True])
def test_a_vocabulary_with_absurd_numbers_is_refused(tmp_path: Path, number: object) -> None:
    text = json.dumps({"model": {"type": "WordPiece", "vocab": {"[UNK]": 0, "a": number}}}).replace('"1e400"', "1e400")
    (tmp_path / "tokenizer.json").write_text(text)
    spec = TextSpec(tokens="wordpiece", vocabulary=str(tmp_path))
    if number is True:  # Python's True is 1
        compute(spec, "text", tmp_path, "a")
    else:
        with pytest.raises(MlaError, match=r"tokenizer\.json"):
            compute(spec, "text", tmp_path, "a")


# ---------------------------------------------------------------- checkpoints


def weights_error(path: Path) -> str:
    from mla_cli.core.weights import read_checkpoint

    with pytest.raises(MlaError) as caught:
        read_checkpoint(path)
    assert caught.value.hint
    return caught.value.message


def test_checkpoints_that_claim_too_much_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    ring: dict[str, Any] = {"epoch": 1}
    ring["model"] = ring
    torch.save(ring, path)
    assert "is not a dense tensor" in weights_error(path)  # and it ends
    torch.save({"a": torch.zeros(1).expand(2**40)}, path)
    assert "claims 4,398,046,511,104 bytes, more than the file holds" in weights_error(path)
    torch.save({"a": torch.zeros(2, dtype=torch.complex64)}, path)
    assert "`a` is complex" in weights_error(path)
    path.write_bytes(b"PK\x06\x07" + b"\xff" * 16 + b"PK\x05\x06" + b"\0" * 18)  # of many disks; found by atheris
    assert "is no checkpoint of torch" in weights_error(path)
    torch.save({"a": torch.zeros(10**6)}, tmp_path / "y.pt")
    with zipfile.ZipFile(tmp_path / "y.pt") as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for part in source.infolist():
            packed.writestr(part.filename, source.read(part))
    assert "never compressed" in weights_error(path)


@pytest.mark.parametrize(
    "header",
    [b"", b"{}", b"[" * 9999, b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'],
)
@pytest.mark.parametrize("claimed", [None, 2**62, 2**64 - 1])
def test_absurd_safetensors_headers_are_refused(tmp_path: Path, header: bytes, claimed: int | None) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header) if claimed is None else claimed) + header + b"\0" * 16)
    assert "x.safetensors" in weights_error(path)


def test_a_sparse_file_of_a_terabyte_is_refused(tmp_path: Path) -> None:
    for name in ("x.pt", "x.safetensors"):
        with open(tmp_path / name, "wb") as file:
            file.truncate(2**40)
        assert "which is no checkpoint" in weights_error(tmp_path / name)
    with open(tmp_path / "mine.yaml", "wb") as file:
        file.truncate(2**40)
    assert "which is no recipe" in refused("recipes", "show", tmp_path / "mine.yaml")


# ---------------------------------------------------------------- memory


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["RGBA", "F"])
def test_the_largest_picture_takes_a_bounded_amount_of_memory(tmp_path: Path, mode: str) -> None:
    program = """
import sys
from pathlib import Path
from mla_cli.data.images import decode_image
from mla_cli.specs import ImageSpec
decode_image(Path(sys.argv[1]), ImageSpec(size=8))
sys.stdout.write(next(line for line in open("/proc/self/status") if line.startswith("VmHWM:")).split()[1])
"""
    path, side = tmp_path / "x.tiff", 9459  # squared just below Pillow's limit
    Image.new(mode, (side, side)).save(path, compression="tiff_deflate")
    found = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    assert int(found.stdout) * 1024 < 1.3e9
