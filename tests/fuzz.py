"""Hostile inputs of every kind of file that `mla` reads, made from sound ones by seed, and what became of them.

`World` builds one sound file of every kind below a folder, small: media, tables, lists, a prepared set, finished and
interrupted runs, weights. `KINDS` says which file a kind is and how the product reads it. `Fuzzer.one(number)` mutates
the file of kind number % len(TURNS), reads it as a user would, and puts the sound file back. The same number makes the
same bytes. An outcome is one of OUTCOMES; anything the product did not foresee leaves as the exception it is.

    python tests/fuzz.py FOLDER FIRST COUNT [KIND]

is one child of `tests/long/fuzz.py`: a line of JSON before and after each input, so that a parent can see a hang.
"""

import json
import shutil
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import media_files
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from command_line import mla
from hostile_bytes import mutate

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
    """Sound files of every kind. folder: an empty one; built once. whole: a prepared set and runs too, in seconds."""

    def __init__(self, folder: Path, whole: bool = True):
        self.folder, self.whole = folder, whole
        self.data, self.runs = folder / "data", folder / "runs"
        sound = folder.with_name(f"{folder.name}.sound")  # a killed child leaves its hostile file behind
        if not sound.is_dir():
            self.build()
            shutil.copytree(folder, sound)
        else:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(sound, folder)

    def build(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.media()
        self.texts()
        self.arrays()
        self.weights()
        if self.whole:
            self.prepared()

    @property
    def run(self) -> Path:
        return next(self.runs.glob("done*"))

    @property
    def stopped(self) -> Path:
        return next(self.runs.glob("stopped*"))

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
        (self.folder / "full.yaml").write_text(dump_yaml(load_recipe("cremad_small")))
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
        return max(found, key=lambda one: one != "decoded")

    return use


def _attempts(kind: str, spec: FeatureSpec, root: Path, ref: str) -> Iterator[str]:
    for look in (lambda: compute(spec, kind, root, ref), lambda: check(kind, root, ref)):
        try:
            feature = look()
        except BadMedia as bad:
            good = bad.kind in PROBLEM_KINDS and bad.reason.strip() and "\n" not in bad.reason
            yield "listed" if good else f"no reason: {bad}"
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
OF_USERS = (
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
)
OF_RUNS = (
    Kind("manifest.json", in_store("manifest.json"), of_store),
    Kind("index.parquet", in_store("index.parquet"), of_store),
    Kind("shard (vector)", in_store("vec/00000.npy"), of_store),
    Kind("shard (text)", in_store("words/00000.npy"), of_store),
    *(Kind(n, in_run(n), of_run) for n in ("run.json", "recipe.yaml", "history.jsonl")),
    *(Kind(n, in_run(n), of_run) for n in ("predictions.parquet", "results.csv")),
    Kind("run.json (stopped)", in_stopped("run.json"), of_stopped),
    Kind("history.jsonl (stopped)", in_stopped("history.jsonl"), of_stopped),
    Kind("last.json", in_stopped("checkpoints/last.json"), of_stopped),
    Kind("best.json", in_stopped("checkpoints/best.json"), of_stopped),
    Kind("last tensors", in_stopped("checkpoints/last-*.safetensors"), of_stopped),
    Kind("best tensors", in_stopped("checkpoints/best-*.safetensors"), of_stopped),
)  # fmt: skip


KINDS = (*OF_USERS, *OF_RUNS)
TURNS = (*OF_USERS * 4, *OF_RUNS)  # what runs and sets are made of takes ten times as long to read


class Fuzzer:
    """Reads one mutated file after the other, in this process. world: it is changed and put back."""

    def __init__(self, world: World, kinds: tuple[Kind, ...] = TURNS, seed: int = 9):
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
            outcome = "error" if error.message.strip() and error.hint.strip() else "an error without a hint"
        finally:
            place.write_bytes(self.sound[own])
        assert outcome in OUTCOMES
        return outcome


def peak_bytes() -> int:
    """The most memory that this process has held; `ru_maxrss` begins with that of the process that started it."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def child(folder: Path, first: int, count: int, kind: str | None = None) -> None:
    """Report every input on stdout: {"begin": number}, then its outcome or its exception. kind: only this one."""
    import traceback

    out = sys.stdout
    fuzzer = Fuzzer(World(folder), TURNS if kind is None else tuple(k for k in KINDS if k.name == kind))
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
