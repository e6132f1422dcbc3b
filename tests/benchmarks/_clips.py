"""CREMA-D-shaped data for benchmarks: three frames of 480 x 360 and ten seconds of sound a clip, prepared as a store.

Few clips are distinct, the others are links to them; in the store every sample has rows of its own.
"""

import os
from pathlib import Path

import av
import numpy as np

from mla_cli.data.store import Store
from mla_cli.engine.data import Data, complete, load_data, open_store
from mla_cli.engine.executor import Local
from mla_cli.engine.prepare import prepare
from mla_cli.recipe import load_recipe
from mla_cli.schema import Recipe

WIDTH, HEIGHT, RATE = 480, 360, 16000
DISTINCT = 16
EMOTIONS = ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")


def pictures(number: int) -> list[np.ndarray]:
    """Three frames of a moving pattern with grain, uint8 (360, 480, 3)."""
    across, down = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    grain = np.random.default_rng(number).integers(-8, 8, (HEIGHT, WIDTH, 3))
    waves = [np.stack([np.sin((across + c * down + 90 * i + 7 * number) / 30) for c in range(3)], 2) for i in range(3)]
    return [np.clip(128 + 90 * wave + grain, 0, 255).astype(np.uint8) for wave in waves]


def write_clip(folder: Path, number: int) -> tuple[Path, Path]:
    """(WAV of 10.3 seconds, FLV of 3 frames, one a second)."""
    wav, flv = folder / f"{number}.wav", folder / f"{number}.flv"
    with av.open(str(flv), "w") as container:
        stream = container.add_stream("flv", rate=1)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = WIDTH, HEIGHT, "yuv420p", 1_000_000
        for picture in pictures(number):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())
    times = np.arange(round(10.3 * RATE)) / RATE
    sound = (8000 * np.sin(2 * np.pi * (200 + 20 * number + 40 * times) * times)).astype(np.int16)
    with av.open(str(wav), "w") as container:
        track = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(sound[None], format="s16", layout="mono")
        frame.sample_rate = RATE
        container.mux(track.encode(frame))
        container.mux(track.encode())
    return wav, flv


def make_tree(root: Path, clips: list[tuple[Path, Path]], count: int) -> None:
    """`count` clips in CREMA-D's layout, six of each actor."""
    for folder in ("AudioWAV", "VideoFlash"):
        (root / folder).mkdir(parents=True)
    for i in range(count):
        wav, flv = clips[i % len(clips)]
        name = f"{1001 + i // 6}_DFA_{EMOTIONS[i % 6]}_XX"
        os.link(wav, root / "AudioWAV" / f"{name}.wav")
        os.link(flv, root / "VideoFlash" / f"{name}.flv")


def prepared(folder: Path, recipe: Recipe, count: int) -> Store:
    """A store of `count` clips below `folder`, by `mla prepare`'s own code."""
    root, raw = folder / "tree", folder / "clips"
    folder.mkdir(exist_ok=True)
    if not root.is_dir():
        raw.mkdir()
        make_tree(root, [write_clip(raw, number) for number in range(DISTINCT)], count)
    for _ in prepare("cremad", folder / "data", recipe, root=root, executor=Local(2)):
        pass
    return Store.open(folder / "data" / recipe.store)


def experiment(folder: Path, base: str, count: int, flags: dict) -> tuple[Recipe, Data]:
    """A shipped recipe with changes, and its data: `count` clips, split at random."""
    recipe = load_recipe(base, flags={"dataset.protocol": "random", "train.diagnostics": False, **flags})
    prepared(folder, recipe, count)
    store = open_store(recipe, folder / "data")
    recipe = complete(recipe, store)
    return recipe, load_data(recipe, store)
