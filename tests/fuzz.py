"""Hostile inputs of every kind of file that `mla` reads, made from sound ones by seed, and what became of them.

`World` builds one sound file of every kind below a folder, small: media, tables, lists, a prepared set, finished and
interrupted runs, weights. `KINDS` says which file a kind is and how the product reads it. `Fuzzer.one(number)` mutates
the file of kind number % len(KINDS), reads it as a user would, and puts the sound file back. The same number makes the
same bytes. An outcome is one of OUTCOMES; anything the product did not foresee leaves as the exception it is.

    python tests/fuzz.py FOLDER FIRST COUNT [KIND]

is one child of `tests/benchmarks/fuzz.py`: a line of JSON before and after each input, so that a parent can see a hang.
"""

import io
import json
import os
import pickle
import re
import resource
import shutil
import struct
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import media_files
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from command_line import mla
from PIL import Image

from mla_cli.data.features import check, compute
from mla_cli.data.manifest import PROBLEM_KINDS
from mla_cli.data.media import BadMedia
from mla_cli.data.split_files import apply_split_file, read_split_file
from mla_cli.datasets import table
from mla_cli.errors import MlaError
from mla_cli.files import write_sealed
from mla_cli.recipe import dump_yaml, load_recipe
from mla_cli.specs import FbankSpec, FeatureSpec, ImageSpec, TextSpec, VectorSpec, VideoSpec

OUTCOMES = ("decoded", "listed", "error")  # usable; named with the property that failed; one error with a hint
FBANK, PICTURE, FRAMES = FbankSpec(frames=40, mels=16), ImageSpec(size=8), VideoSpec(size=8, frames=2)


# ---------------------------------------------------------------- what is mutated


class World:
    """Sound files of every kind. folder: an empty one; built once, in some seconds."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.data, self.runs = folder / "data", folder / "runs"
        sound = folder.with_name(f"{folder.name}.sound")  # a killed child leaves its hostile file behind
        if not sound.is_dir():
            self.build()
            shutil.copytree(folder, sound)
        else:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(sound, folder)
        self.run = next(path for path in self.runs.iterdir() if path.name.startswith("done"))
        self.stopped = next(path for path in self.runs.iterdir() if path.name.startswith("stopped"))

    def build(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.media()
        self.texts()
        self.arrays()
        self.prepared()
        self.weights()

    def media(self) -> None:
        sound = media_files.noise(0.4, 22050)
        for suffix in media_files.AUDIO_CODECS:
            media_files.write_audio(self.folder / f"x{suffix}", media_files.noise(0.3, 16000), 16000)
        for suffix in media_files.CLIP_CODECS:
            media_files.write_clip(self.folder / f"clip{suffix}", 0.4, sound=sound, width=48, height=36)
        for suffix in (".jpg", ".png", ".gif", ".bmp", ".webp", ".tiff", ".ppm"):
            media_files.write_image(self.folder / f"x{suffix}")
        with zipfile.ZipFile(self.folder / "pictures.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(self.folder / "x.png", "x.png")

    def texts(self) -> None:
        rows = [
            f"s{i},{'ab'[i % 2]},{i // 2},{('train', 'val', 'test')[i % 3]},v.npy::{i},word{i} and {i}"
            for i in range(60)
        ]
        lines = ["id,label,group,split,vec,words", *rows]
        (self.folder / "my.csv").write_text("\n".join(lines) + "\n")
        (self.folder / "my.tsv").write_text("\n".join(lines).replace(",", "\t") + "\n")
        cells = [line.split(",") for line in rows]
        columns = {name: [row[i] for row in cells] for i, name in enumerate(lines[0].split(","))}
        pq.write_table(pa.table(columns), self.folder / "my.parquet")
        lists = self.folder / "lists"
        lists.mkdir()
        names = {"train": range(0, 60, 3), "val": range(1, 60, 3), "test": range(2, 60, 3)}
        for split, numbers in names.items():
            records = [{"id": i, "img": f"img/s{i}.jpg", "text": "t", "label": "ab"[i % 2]} for i in numbers]
            (lists / f"{split}.csv").write_text("".join(f"s{i},{'ab'[i % 2]}\n" for i in numbers))
            (lists / f"{split}.txt").write_text("".join(f"s{i}.mp4 {'ab'[i % 2]}\n" for i in numbers))
            (lists / f"{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        (self.folder / "classes.txt").write_text("b\na\n")
        (self.folder / "note.txt").write_text("A short note, with some words.\n" * 5)
        tokens = ["[PAD]", "[UNK]", *"abcdefghijklmnopqrstuvwxyz", "##a", "##b", "##e", "word", "and", "##s"]
        (self.folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens))
        model = {"type": "WordPiece", "vocab": {token: i for i, token in enumerate(tokens)}}
        (self.folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model}))

    def arrays(self) -> None:
        values = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
        np.save(self.folder / "v.npy", values)
        np.savez_compressed(self.folder / "v.npz", x=values)

    def prepared(self) -> None:
        """A prepared set, a finished run of it, one that stopped in the middle of its second epoch, an ablation."""
        good = mla(
            "prepare", "table", "--table", self.folder / "my.csv", "--root", self.folder, "--data-dir", self.data
        )
        assert good.code == 0, good.stderr
        common = {
            "dataset": {"name": "table", "store": "my"},
            "encoders": {"vec": {"name": "mlp", "hidden": 4}, "words": {"name": "ngram_bag", "width": 4}},
            "shared_width": 4,
            "train": {"epochs": 2, "batch_size": 8, "threads": 1, "missing_rate": 0.1},
        }
        for name in ("done", "stopped"):
            (self.folder / f"{name}.yaml").write_text(json.dumps({"name": name, **common}))  # JSON is YAML
            how = ("--recipe", self.folder / f"{name}.yaml", "--data-dir", self.data, "--run-dir", self.runs)
            good = mla("train", *how)
            assert good.code == 0, good.stderr
        shutil.copy(next(self.runs.glob("done*")) / "recipe.yaml", self.folder / "full.yaml")
        stopped = next(self.runs.glob("stopped*"))
        info = json.loads((stopped / "run.json").read_text())
        write_sealed(stopped / "run.json", info | {"state": "running", "files": {}})

    def weights(self) -> None:
        import torch
        from safetensors.torch import save_file

        tensors = {f"layer{i}.weight": torch.randn(4, 3) for i in range(3)} | {"steps": torch.tensor(3)}
        save_file(tensors, self.folder / "w.safetensors")
        torch.save({"model": tensors, "epoch": 3}, self.folder / "w.pt")
        torch.save(tensors, self.folder / "old.pth", _use_new_zipfile_serialization=False)
        # the smallest M3AE, of one block; each tensor is one zero, repeated, so that the file is small
        from mla_cli.core.layout_files import factor
        from mla_cli.core.layouts import LAYOUTS

        shapes = {name: shape for part in LAYOUTS["m3ae"].parts.values() for name, shape in part.shapes.items()}
        sides = {
            name: [s if isinstance(s, int) else factor(s)[0] * {"d": 384}.get(factor(s)[1], 8) for s in shape]
            for name, shape in shapes.items()
        }
        zeros = {name.replace("*", "0"): torch.zeros(()).expand(shape) for name, shape in sides.items()}
        torch.save({"model": zeros}, self.folder / "m3ae.pth")


# ---------------------------------------------------------------- mutations

HOSTILE_WORDS = (
    *("", "-1", "0", "1e309", "-1e309", "NaN", "Infinity", "9" * 30, "9" * 5000, "0x" + "f" * 5000, "null", "true"),
    *("[]", "{}", '""', "[[[[]]]]", "../../../../etc/passwd", "/etc/passwd", "file:///etc/passwd", "C:\\x", "~"),
    *("=cmd|' /C calc'!A0", "+1", "@x", "\x1b[31mred", "\x00", "\ufeff", "\u202e", "\ud7ff", "a" * 10_000, "\n", "\r"),
    *("\t", ",", ";", '"', "'", "`", "&a [*a]", "*a", "!!python/object/apply:os.system [id]", "<<", "? ", "- ", "# "),
    *("x" * 300, ".", "..", "/", "\\", "concat:a|b", "http://127.0.0.1:9/x", "#t=1,2", "#xywh=percent:0,0,0,0", "::0"),
    *("#encoding=idna", "#encoding=zlib", "::-1", "[split|sign]", "<script>alert(1)</script>", "%s%n", "{0.__class__}"),
)
HOSTILE_VALUES = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2**31,
        2**63,
        -(2**63),
        10**40,
        1e308,
        -0.5,
        "",
        "a",
        "../../etc/passwd",
        "x" * 3000,
    ),
    *("\x00", "\x1b[31m", "\ud800", [], [None], {}, {"a": 1}, [[]], [1, 2, 3], ["a", "a"], {"": {}}, "nan", "1e5"),
)


def mutate(victim: bytes, other: bytes, suffix: str, rng: np.random.Generator) -> bytes:
    """Bytes of a hostile file: half the time its bytes are damaged, half the time what it says is absurd.

    other: another file, to stand under this one's name. The suffix says of which structure the file is.
    """
    shaped = STRUCTURES.get(suffix)
    if shaped is not None and rng.random() < 0.6:
        return shaped(victim, rng)
    return mutate_bytes(victim, other, rng)


def mutate_bytes(victim: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Flipped bits, truncation, huge declared sizes, noise, doubled parts, nothing at all, or another file."""
    data = bytearray(victim)
    size = max(len(data), 1)
    match rng.integers(8):
        case 0 | 1 | 2:
            reach = size if rng.random() < 0.5 else min(size, 200)
            for place in rng.integers(reach, size=rng.integers(1, 20)):
                data[place] ^= 1 << int(rng.integers(8))
        case 3:
            del data[int(rng.integers(size)) :]
        case 4:
            place = int(rng.integers(min(size, 400)))
            data[place : place + 4] = (b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\x00\x00\x00\x00")[rng.integers(3)]
        case 5:
            place = int(rng.integers(size))
            data[place : place + int(rng.integers(1, 500))] = rng.bytes(int(rng.integers(1, 500)))
        case 6:
            place = int(rng.integers(size))
            data = data[:place] + data[place // 2 :]
        case 7:
            data = bytearray(other) if rng.random() < 0.5 else bytearray(rng.bytes(int(rng.integers(0, 400))))
    return bytes(data)


def mutate_text(victim: bytes, rng: np.random.Generator) -> bytes:
    """One to three words or lines replaced by hostile ones, lines doubled, dropped or nested."""
    text = victim.decode("utf-8", "replace")
    for _ in range(rng.integers(1, 4)):
        words = list(re.finditer(r"[\w.\-]+|[^\w\s]", text))
        if not words:
            break
        hostile = HOSTILE_WORDS[rng.integers(len(HOSTILE_WORDS))]
        # the beginning of a file decides most
        at = words[int(rng.integers(len(words) if rng.random() < 0.6 else min(20, len(words))))]
        match rng.integers(5):
            case 0 | 1 | 2:
                text = text[: at.start()] + hostile + text[at.end() :]
            case 3:
                lines = text.split("\n")
                place = int(rng.integers(len(lines)))
                lines[place : place + 1] = [lines[place]] * int(rng.integers(0, 4))
                text = "\n".join(lines)
            case 4:
                depth = (3, 200, 3000)[rng.integers(3)]
                text = text[: at.start()] + "[" * depth + at[0] + "]" * depth + text[at.end() :]
    return text.encode("utf-8", "surrogatepass")


def mutate_json(victim: bytes, rng: np.random.Generator) -> bytes:
    """A value somewhere inside replaced, dropped or added."""
    content = json.loads(victim)
    for _ in range(rng.integers(1, 3)):
        content = _mutate_value(content, rng)
    return json.dumps(content).encode()


def _mutate_value(value: Any, rng: np.random.Generator) -> Any:
    if isinstance(value, dict | list) and value and rng.random() < 0.9:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = keys[int(rng.integers(len(keys)))]
        if rng.random() < 0.12:
            del value[key]
        else:
            value[key] = _mutate_value(value[key], rng)
        return value
    if isinstance(value, dict) and rng.random() < 0.5:
        return {**value, str(HOSTILE_WORDS[rng.integers(len(HOSTILE_WORDS))]): 1}
    return HOSTILE_VALUES[rng.integers(len(HOSTILE_VALUES))]


def mutate_lines(victim: bytes, rng: np.random.Generator) -> bytes:
    """One line of a .jsonl file as `mutate_json` makes it."""
    if rng.random() < 0.4:
        return mutate_text(victim, rng)
    lines = victim.splitlines()
    place = int(rng.integers(len(lines)))
    lines[place] = mutate_json(lines[place], rng)
    return b"\n".join(lines) + b"\n"


def mutate_parquet(victim: bytes, rng: np.random.Generator) -> bytes:
    """A column of another type, dropped, doubled, renamed or emptied; other metadata; no or many rows."""
    found = pq.read_table(io.BytesIO(victim))
    place = int(rng.integers(found.num_columns))
    name, rows = found.column_names[place], found.num_rows
    match rng.integers(7):
        case 0:
            found = found.drop_columns([name])
        case 1:
            found = found.append_column(name, found.column(place))
        case 2:
            found = found.rename_columns(
                [
                    HOSTILE_WORDS[rng.integers(len(HOSTILE_WORDS))].replace("\x00", "") if n == name else n
                    for n in found.column_names
                ]
            )
        case 3:
            found = found.slice(0, int(rng.integers(3))) if rng.random() < 0.7 else pa.concat_tables([found] * 20)
        case 4:
            facts = dict(found.schema.metadata or {})
            facts = {key: mutate_json(value, rng) for key, value in facts.items()} or {b"pandas": b'{"columns": 3}'}
            found = found.replace_schema_metadata(facts)
        case _:
            found = found.set_column(place, name, _hostile_column(rows, found.column(place), rng))
    out = io.BytesIO()
    pq.write_table(found, out)
    return out.getvalue()


def _hostile_column(rows: int, own: pa.ChunkedArray, rng: np.random.Generator) -> pa.Array:
    match rng.integers(8):
        case 0:
            return pa.nulls(rows, own.type)
        case 1:
            return pa.nulls(rows)
        case 2:
            return pa.array([[1.0, None], []] * rows, pa.list_(pa.float64()))[:rows]
        case 3:
            return pa.array([{"a": 1}] * rows)
        case 4:
            return pa.array([float("nan"), float("inf")] * rows)[:rows]
        case 5:
            return pa.array([pickle.dumps(print)] * rows, pa.binary())
        case 6:
            words = [
                HOSTILE_WORDS[i].encode("utf-8", "ignore").decode() for i in rng.integers(len(HOSTILE_WORDS), size=rows)
            ]
            return pa.array(words)
    return pa.array(rng.integers(-(2**62), 2**62, size=rows))


def mutate_npy(victim: bytes, rng: np.random.Generator) -> bytes:
    """An array of another kind or shape, or one whose header lies."""
    values = np.load(io.BytesIO(victim))
    out = io.BytesIO()
    match rng.integers(9):
        case 0:
            np.save(out, values.astype([">f8", "<i8", "U5", "S3", "c16", "?", "f2", "M8[s]"][rng.integers(8)]))
        case 1:
            np.save(out, np.asfortranarray(values))
        case 2:
            np.save(out, values.reshape(-1)[: int(rng.integers(3))])
        case 3:
            np.save(
                out,
                np.zeros(len(values), [("a", "f4"), ("b", "O")] if rng.random() < 0.5 else [("a", "f4")]),
                allow_pickle=True,
            )
        case 4:
            np.save(out, np.array([{"a": 1}, None], dtype=object), allow_pickle=True)
        case 5:
            np.save(out, np.where(rng.random(values.shape) < 0.1, [np.nan, np.inf, 1e38][rng.integers(3)], values))
        case 6:
            np.save(out, values.reshape(*values.shape, 1, 1))
        case _:
            shape = [
                "(10**15, 3)",
                "(1000000000000000, 3)",
                "(-60, 3)",
                "(60, 0)",
                "(60,3,1,1,1)",
                "()",
                "'x'",
                "(2**40,)",
            ]
            dtype = ["'<f4'", "'|O'", "'<U1000000000'", "[('a','<f4')]", "'V0'", "None", "'<f4'"][rng.integers(7)]
            order = ["False", "True", "3"][rng.integers(3)]
            head = f"{{'descr': {dtype}, 'fortran_order': {order}, 'shape': {shape[rng.integers(8)]}, }}\n".encode()
            out.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + values.tobytes())
    return out.getvalue()


def mutate_npz(victim: bytes, rng: np.random.Generator) -> bytes:
    """Members that are mutated arrays, or whose names and number are odd."""
    inner = mutate_npy(zipfile.ZipFile(io.BytesIO(victim)).read("x.npy"), rng)
    out = io.BytesIO()
    names = [["x.npy"], ["y.npy"], ["../x.npy"], ["x.npy", "y.npy"], ["a.npy", "b.npy"], [], ["x"]][rng.integers(7)]
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, inner)
    return out.getvalue()


def mutate_safetensors(victim: bytes, rng: np.random.Generator) -> bytes:
    """A header that lies, or tensors that are missing, renamed, of another shape, type or not finite."""
    import torch
    from safetensors.torch import load, save

    if rng.random() < 0.4:
        (size,) = struct.unpack("<Q", victim[:8])
        header = mutate_json(victim[8 : 8 + size], rng)
        claimed = len(header) if rng.random() < 0.8 else int(rng.integers(2**62))
        return struct.pack("<Q", claimed) + header + victim[8 + size :]
    tensors = load(victim)
    names = sorted(tensors)
    name = names[int(rng.integers(len(names)))]
    value = tensors[name]
    match rng.integers(7):
        case 0:
            del tensors[name]
        case 1:
            tensors[HOSTILE_WORDS[rng.integers(len(HOSTILE_WORDS))]] = tensors.pop(name)
        case 2:
            tensors[name] = value.reshape(-1)[: int(rng.integers(2))]
        case 3:
            tensors[name] = value.to(
                [torch.float64, torch.int64, torch.bool, torch.bfloat16, torch.complex64][rng.integers(5)]
            )
        case 4:
            tensors[name] = torch.full_like(value, [0, 1, -1, 127][rng.integers(4)])
        case 5:
            tensors[name] = torch.full(value.shape, [float("nan"), float("inf"), 3e38][rng.integers(3)])
        case 6:
            tensors = {}
    return save({key: tensor.contiguous() for key, tensor in tensors.items()})


def mutate_torch(victim: bytes, rng: np.random.Generator) -> bytes:
    """Checkpoints of odd content, and the pickle inside with single opcodes changed."""
    import torch

    if rng.random() < 0.5 and victim.startswith(b"PK"):
        out = io.BytesIO()
        source = zipfile.ZipFile(io.BytesIO(victim))  # a sound one
        with zipfile.ZipFile(out, "w", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED][rng.integers(2)]) as archive:
            for info in source.infolist():
                data = source.read(info)
                archive.writestr(
                    info.filename, mutate_bytes(data, b"", rng) if info.filename.endswith(".pkl") else data
                )
        return out.getvalue()
    ring: dict[str, Any] = {"epoch": 1}
    ring["model"] = ring
    one = torch.zeros(1)
    contents = [
        *({}, {"model": {}}, [1, 2], {"a": 1}, {"model": {"a": [one]}}, {1: one, 2: one}, {"a": one.to_sparse()}, one, None),
        *(ring, {"a": one.expand(2**40)}, {"a": torch.zeros(2, dtype=torch.complex64)}, {"state_dict": {"module.a": one}}),
        *({"layer0.weight": torch.full((4, 3), float("nan"))}, {"x" * 10_000: one}, {"\x1b[31m\n": one}, {"a": one.to("meta")}),
        *({("a", 1): one}, {"model": {"model": {"model": {"a": one}}}}, {"a": torch.nn.Parameter(one)}, {"a": b"x" * 1000}),
    ]  # fmt: skip
    out = io.BytesIO()
    torch.save(contents[rng.integers(len(contents))], out)
    return out.getvalue()


STRUCTURES: dict[str, Callable[[bytes, np.random.Generator], bytes]] = {
    **dict.fromkeys((".csv", ".tsv", ".txt", ".yaml"), mutate_text),
    ".json": mutate_json,
    ".jsonl": mutate_lines,
    ".parquet": mutate_parquet,
    ".npy": mutate_npy,
    ".npz": mutate_npz,
    ".safetensors": mutate_safetensors,
    **dict.fromkeys((".pt", ".pth"), mutate_torch),
}


# ---------------------------------------------------------------- reading them


@dataclass(frozen=True)
class Kind:
    """A kind of file: where it lies below the world's folder, and what reads it."""

    name: str
    place: Callable[[World], Path]
    use: Callable[[World, Path], str]


def features(*wanted: tuple[str, FeatureSpec], member: str = "") -> Callable[[World, Path], str]:
    """Every feature that a file could be asked for, and the quicker look of `--check`."""

    def use(world: World, path: Path) -> str:
        found = [
            attempt for kind, spec in wanted for attempt in _attempts(kind, spec, world.folder, path.name + member)
        ]
        return "listed" if "listed" in found else "decoded"

    return use


def _attempts(kind: str, spec: FeatureSpec, root: Path, ref: str) -> Iterator[str]:
    for look in (lambda: compute(spec, kind, root, ref), lambda: check(kind, root, ref)):
        try:
            feature = look()
        except BadMedia as bad:
            assert bad.kind in PROBLEM_KINDS and bad.reason.strip() and "\n" not in bad.reason, bad
            yield "listed"
        else:
            assert feature is None or np.isfinite(feature.array).all()
            yield "decoded"


def own_table(world: World, path: Path) -> str:
    found = table.scan(world.folder, path)
    found.fingerprint()
    assert all(problem.kind in PROBLEM_KINDS and problem.reason for problem in found.problems)
    return "listed" if found.problems or found.rows.empty else "decoded"


def split_list(world: World, path: Path) -> str:
    rows = table.scan(world.folder, world.folder / "my.csv").rows
    three = ",".join(str(path.with_name(f"{split}{path.suffix}")) for split in ("train", "val", "test"))
    side, report = apply_split_file(rows, read_split_file(three), 0)
    assert set(side) <= {"train", "val", "test", ""}
    return "listed" if report.not_on_disk or report.on_two_lists or report.other_label else "decoded"


def class_list(world: World, path: Path) -> str:
    from mla_cli.engine.class_order import class_order

    assert sorted(class_order(str(path), ["a", "b"])) == ["a", "b"]
    return "decoded"


def vocabulary(world: World, path: Path) -> str:
    spec = TextSpec(tokens="wordpiece", vocabulary=str(path), length=8)
    compute(spec, "text", world.folder, "some words and a word")
    return "decoded"


def recipe(world: World, path: Path) -> str:
    loaded = load_recipe(str(path))
    again = path.with_name("again.yaml")
    again.write_text(dump_yaml(loaded), "utf-8")
    assert load_recipe(str(again)) == loaded
    return "decoded"


def tensors(world: World, path: Path) -> str:
    """As an encoder's weights."""
    import torch
    from mla_cli.core.weights import load_weights
    from mla_cli.schema import EncoderSection

    network = torch.nn.ModuleDict({f"layer{i}": torch.nn.Linear(3, 4, bias=False) for i in range(3)})
    load_weights("vec", EncoderSection(name="mlp", weights=str(path)), network)
    assert all(bool(value.isfinite().all()) for value in network.state_dict().values())
    return "decoded"


def layout(world: World, path: Path) -> str:
    return commands(("import", path, "--layout", "m3ae", "--out", world.folder / "out.safetensors", "--force"))


def commands(*many: tuple[object, ...]) -> str:
    """Commands of which each ends well or with one error."""
    outcomes = []
    for words in many:
        done = mla(*words)
        assert done.code in (0, 1), (words, done.code, done.stderr)
        assert "Traceback" not in done.stderr + done.stdout
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == done.code, done.stderr
        assert not done.code or "\nhint: " in done.stderr, done.stderr
        outcomes.append("error" if done.code else "decoded")
    return "error" if "error" in outcomes else "decoded"


def of_run(world: World, path: Path) -> str:
    """What a finished run's files are read by."""
    where = ("--run-dir", world.runs, "--data-dir", world.data)
    several = [("eval", world.run, "--quiet", "--no-intervals", *where), ("status", *where)]
    if path.suffix in (".jsonl", ".json"):
        several.append(("eval", world.run, "--diagnostics", "--format", "csv", *where))
    if path.suffix in (".csv", ".yaml"):
        several.append(("diff", world.run, world.stopped, *where))
    outcome = commands(*several)
    listed = "damaged" in mla("status", *where).stdout
    return "listed" if listed and outcome == "decoded" else outcome


def of_stopped(world: World, path: Path) -> str:
    """What `--resume` reads, in a copy of the run."""
    copy = world.folder / "resumed" / world.stopped.name
    shutil.rmtree(copy.parent, ignore_errors=True)
    shutil.copytree(world.stopped, copy)
    how = ("--recipe", world.folder / "stopped.yaml", "--data-dir", world.data, "--run-dir", copy.parent)
    return commands(("train", *how, "--resume", "--quiet"))


def of_store(world: World, path: Path) -> str:
    """Training on it and scoring with it."""
    shutil.rmtree(world.folder / "fresh", ignore_errors=True)
    how = ("--data-dir", world.data, "--run-dir", world.folder / "fresh")
    several = [
        ("train", "--recipe", world.folder / "done.yaml", *how, "--set", "train.epochs=1", "--quiet"),
        ("status", *how),
    ]
    if path.suffix == ".json":
        several.append(("prepare", "table", "--table", world.folder / "my.csv", "--root", world.folder, *how[:2]))
    return commands(*several)


def at(name: str) -> Callable[[World], Path]:
    return lambda world: world.folder / name


def in_run(name: str) -> Callable[[World], Path]:
    return lambda world: next(world.run.glob(name))


def in_stopped(name: str) -> Callable[[World], Path]:
    return lambda world: next(world.stopped.glob(name))


def in_store(name: str) -> Callable[[World], Path]:
    return lambda world: world.data / "my" / name


SOUND, VIDEO = ("audio", FBANK), ("video", FRAMES)
IMAGE, ROWS, TEXT = ("image", PICTURE), ("vector", VectorSpec(width=3)), ("text_file", TextSpec(length=16))
KINDS = (
    *(Kind(suffix[1:], at(f"x{suffix}"), features(SOUND)) for suffix in media_files.AUDIO_CODECS),
    *(Kind(suffix[1:], at(f"clip{suffix}"), features(SOUND, VIDEO)) for suffix in media_files.CLIP_CODECS),
    *(Kind(s[1:], at(f"x{s}"), features(IMAGE)) for s in (".jpg", ".png", ".gif", ".bmp", ".webp", ".tiff", ".ppm")),
    Kind("zip member", at("pictures.zip"), features(IMAGE, member="::x.png")),
    Kind("npy", at("v.npy"), features(ROWS, member="::2")),
    Kind("npz", at("v.npz"), features(ROWS, member="::2")),
    Kind("text file", at("note.txt"), features(TEXT)),
    *(Kind(f"{s} table", at(f"my.{s}"), own_table) for s in ("csv", "tsv", "parquet")),
    *(Kind(f"{s} list", at(f"lists/train.{s}"), split_list) for s in ("csv", "txt", "jsonl")),
    Kind("class list", at("classes.txt"), class_list),
    Kind("vocabulary", at("vocab.txt"), vocabulary),
    Kind("tokenizer.json", at("tokenizer.json"), vocabulary),
    Kind("recipe", at("full.yaml"), recipe),
    Kind("weights safetensors", at("w.safetensors"), tensors),
    Kind("weights pt", at("w.pt"), tensors),
    Kind("weights pth (old)", at("old.pth"), tensors),
    Kind("import", at("m3ae.pth"), layout),
    Kind("manifest.json", in_store("manifest.json"), of_store),
    Kind("index.parquet", in_store("index.parquet"), of_store),
    Kind("shard (vector)", in_store("vec/00000.npy"), of_store),
    Kind("shard (text)", in_store("words/00000.npy"), of_store),
    *(Kind(n, in_run(n), of_run) for n in ("run.json", "recipe.yaml", "history.jsonl", "predictions.parquet", "results.csv")),
    Kind("run.json (stopped)", in_stopped("run.json"), of_stopped),
    Kind("history.jsonl (stopped)", in_stopped("history.jsonl"), of_stopped),
    Kind("last.json", in_stopped("checkpoints/last.json"), of_stopped),
    Kind("best.json", in_stopped("checkpoints/best.json"), of_stopped),
    Kind("last tensors", in_stopped("checkpoints/last-*.safetensors"), of_stopped),
    Kind("best tensors", in_stopped("checkpoints/best-*.safetensors"), of_stopped),
)  # fmt: skip


class Fuzzer:
    """Reads one mutated file after the other, in this process. world: it is changed and put back."""

    def __init__(self, world: World, kinds: tuple[Kind, ...] = KINDS, seed: int = 9):
        self.world, self.kinds, self.seed = world, kinds, seed
        self.places = [kind.place(world) for kind in kinds]
        self.sound = [place.read_bytes() for place in self.places]

    def kind(self, number: int) -> Kind:
        return self.kinds[number % len(self.kinds)]

    def bytes_of(self, number: int) -> bytes:
        """The mutated file of a number."""
        rng = np.random.default_rng([self.seed, number])
        own = number % len(self.kinds)
        other = self.sound[int(rng.integers(len(self.kinds)))]
        return mutate(self.sound[own], other, self.places[own].suffix, rng)

    def one(self, number: int) -> str:
        """Its outcome. Raises whatever the product did not foresee."""
        own = number % len(self.kinds)
        place = self.places[own]
        place.write_bytes(self.bytes_of(number))
        try:
            outcome = self.kinds[own].use(self.world, place)
        except MlaError as error:
            assert error.message.strip() and error.hint.strip(), error
            outcome = "error"
        finally:
            place.write_bytes(self.sound[own])
        assert outcome in OUTCOMES
        return outcome


def peak_bytes() -> int:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def child(folder: Path, first: int, count: int, kind: str | None = None) -> None:
    """Report every input on stdout: {"begin": number}, then its outcome or its exception. kind: only this one."""
    import traceback

    out = sys.stdout
    fuzzer = Fuzzer(World(folder), tuple(k for k in KINDS if kind in (None, k.name)))
    for number in range(first, first + count):
        print(json.dumps({"begin": number, "kind": fuzzer.kind(number).name}), file=out, flush=True)
        try:
            found = {"outcome": fuzzer.one(number)}
        except Exception as error:  # what this program is for
            found = {
                "outcome": "traceback",
                "error": f"{type(error).__name__}: {error}"[:300],
                "text": traceback.format_exc()[-3000:],
            }
        print(json.dumps({"end": number, "peak": peak_bytes(), **found}), file=out, flush=True)


if __name__ == "__main__":
    warnings.simplefilter("error")
    child(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
