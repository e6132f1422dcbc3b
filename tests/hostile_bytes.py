"""Sound bytes made hostile, from a seeded generator: damaged at random, or whole files that say absurd things."""

import io
import json
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

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
        *({}, {"model": {}}, [1, 2], {"a": 1}, {"model": {"a": [one]}}, {1: one, 2: one}, one, None, ring),
        *(
            {"a": one.to_sparse()},
            {"a": one.to("meta")},
            {"a": one.expand(2**40)},
            {"a": torch.zeros(2).to(torch.complex64)},
        ),
        *(
            {"layer0.weight": torch.full((4, 3), float("nan"))},
            {"x" * 10_000: one},
            {"\x1b[31m\n": one},
            {("a", 1): one},
        ),
        *({"state_dict": {"module.a": one}}, {"model": {"model": {"model": {"a": one}}}}, {"a": b"x" * 1000}),
        {"a": torch.nn.Parameter(one)},
    ]
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
