"""How fast is `mla prepare` next to a bare loop that only decodes, and how much memory does it take?

    python tests/benchmarks/prepare.py

400 synthetic clips of 2.5 s in CREMA-D's layout (FLV 480 x 360 at 30 frames a second, WAV at 16 kHz), the features of
`cremad_small`. The bare loop is what one would write in a script: worker processes that decode the same frames and
compute the same filter banks, and keep nothing. Both start their processes anew and are timed in turn (clips a second);
a few rows of the store are compared with the loop's. Memory is that of all processes together, over what their imports
take. Exit code 1 if the engine is slower than `LEAST` of the loop or takes more than `MOST` bytes.
"""

import multiprocessing as mp
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import av
import numpy as np

from mla_cli.data.store import Store
from mla_cli.engine.executor import Local, default_workers
from mla_cli.engine.prepare import prepare
from mla_cli.recipe import load_recipe

LEAST = 0.8  # engine / bare loop, clips a second
MOST = 10**9  # bytes over the imports
CLIPS, MANY, REPETITIONS = 400, 1600, 3
SECONDS, FPS, WIDTH, HEIGHT, RATE = 2.5, 30, 480, 360, 16000
DISTINCT = 16  # clips that are encoded; the others are links to them
EMOTIONS = ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")


# ---------------------------------------------------------------- the clips


def write_clip(folder: Path, number: int) -> tuple[Path, Path]:
    """A moving pattern and a chirp: (WAV, FLV)."""
    wav, flv = folder / f"{number}.wav", folder / f"{number}.flv"
    across, down = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    grain = np.random.default_rng(number).integers(-8, 8, (HEIGHT, WIDTH, 3))
    with av.open(str(flv), "w") as container:
        stream = container.add_stream("flv", rate=FPS)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = WIDTH, HEIGHT, "yuv420p", 1_000_000
        for i in range(round(SECONDS * FPS)):
            wave = np.stack([np.sin((across + c * down + (3 + number) * i) / 30) for c in range(3)], axis=2)
            pixels = np.clip(128 + 90 * wave + grain, 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode())
    times = np.arange(round(SECONDS * RATE)) / RATE
    sound = (8000 * np.sin(2 * np.pi * (200 + 20 * number + 100 * times) * times)).astype(np.int16)
    with av.open(str(wav), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(sound[None], format="s16", layout="mono")
        frame.sample_rate = RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return wav, flv


def processor_seconds() -> float:
    """Of this process and its children that have ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def make_tree(root: Path, clips: list[tuple[Path, Path]], count: int) -> None:
    """`count` clips in CREMA-D's layout."""
    for folder in ("AudioWAV", "VideoFlash"):
        (root / folder).mkdir(parents=True)
    for i in range(count):
        wav, flv = clips[i % len(clips)]
        name = f"{1001 + i // 60}_DFA_{EMOTIONS[i % 6]}_{i // 6 % 10}"
        os.link(wav, root / "AudioWAV" / f"{name}.wav")
        os.link(flv, root / "VideoFlash" / f"{name}.flv")


# ---------------------------------------------------------------- the bare loop


def bare_clip(paths: tuple[str, str]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Filter banks of the sound, and the frames at 0, 1 and 2 seconds in their own size."""
    import torch

    from mla_cli.data.media import load_torchaudio  # torchaudio beside any torch; nothing else of ours is used

    torch.set_num_threads(1)
    _, torchaudio = load_torchaudio()
    with av.open(paths[0]) as container:
        sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    wave = torch.from_numpy(sound.astype(np.float32) / 32768)[None]
    banks = torchaudio.compliance.kaldi.fbank(
        wave - wave.mean(),
        htk_compat=True,
        sample_frequency=RATE,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=64,
        dither=0.0,
        frame_shift=10,
    ).numpy()[:320]
    wanted, pictures, shown = [0.0, 1.0, 2.0], [], None
    with av.open(paths[1]) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for frame in container.decode(stream):
            if frame.time > wanted[0] + 0.001:
                pictures.append(shown.to_ndarray(format="rgb24"))
                wanted.pop(0)
                if not wanted:
                    break
            shown = frame
    return banks, pictures


def bare_worker(paths: tuple[str, str]) -> int:
    """The loop keeps nothing."""
    return len(bare_clip(paths)[1])


def bare_loop(root: Path, workers: int) -> float:
    """Seconds for all clips."""
    wavs = sorted((root / "AudioWAV").iterdir())
    paths = [(str(wav), str(root / "VideoFlash" / f"{wav.stem}.flv")) for wav in wavs]
    begin = time.perf_counter()
    with mp.get_context("spawn").Pool(workers) as pool:
        assert set(pool.imap_unordered(bare_worker, paths, chunksize=8)) == {3}
    return time.perf_counter() - begin


# ---------------------------------------------------------------- the engine


def engine(root: Path, data_dir: Path, workers: int) -> float:
    """Seconds of `mla prepare cremad` into an empty folder."""
    shutil.rmtree(data_dir, ignore_errors=True)
    recipe = load_recipe("cremad_small")
    begin = time.perf_counter()
    for _ in prepare("cremad", data_dir, recipe, root, executor=Local(workers)):
        pass
    return time.perf_counter() - begin


def compare_rows(root: Path, data_dir: Path) -> None:
    """The store holds what the loop computes."""
    store = Store.open(data_dir / "cremad")
    for i in (0, len(store.index) // 2):
        row = store.index.iloc[[i]]
        banks, pictures = bare_clip((str(root / row["ref.audio"].item()), str(root / row["ref.visual"].item())))
        audio = store.modality("audio").take(row["row.audio"].to_numpy())[0, 0]
        visual = store.modality("visual").take(row["row.visual"].to_numpy())[0]
        np.testing.assert_array_equal(audio[: len(banks)], banks)
        for small, large in zip(visual, pictures, strict=True):
            assert abs(small.mean() - large.mean()) < 2, "other frames"


# ---------------------------------------------------------------- memory


def resident(process: int | str) -> int:
    """Bytes of memory that a process holds, without the pages of files that it maps."""
    try:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
        return int(fields["RssAnon"].split()[0]) * 1024
    except (OSError, KeyError):
        return 0


def children() -> list[int]:
    return [int(pid) for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()]


def import_all(connection: Any) -> None:
    """What a worker of `mla prepare` imports."""
    import mla_cli.engine.shards
    from mla_cli.data.media import load_torchaudio

    load_torchaudio()
    assert mla_cli.engine.shards
    connection.send(resident("self"))


def imports_of_a_worker() -> int:
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=import_all, args=(theirs,))
    process.start()
    taken: int = ours.recv()
    process.join()
    return taken


def peak_memory(root: Path, data_dir: Path, workers: int) -> int:
    """Largest sum over all processes while preparing, over what importing takes."""
    base, worker = resident("self"), imports_of_a_worker()
    sums, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.02):
            over = [max(0, resident(pid) - worker) for pid in children()]
            sums.append(max(0, resident("self") - base) + sum(over))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        engine(root, data_dir, workers)
    finally:
        stop.set()
        thread.join()
    return max(sums)


def main() -> int:
    """Compare; 0 if speed and memory keep their limits."""
    workers = default_workers()
    with tempfile.TemporaryDirectory(prefix="mla-benchmark-") as name:
        folder = Path(name)
        clips = [write_clip(folder, number) for number in range(DISTINCT)]
        make_tree(folder / "some", clips, CLIPS)
        make_tree(folder / "many", clips, MANY)
        times: dict[str, list[float]] = {"engine": [], "loop": []}
        spent: dict[str, list[float]] = {"engine": [], "loop": []}
        for repetition in range(REPETITIONS):
            for which in list(times)[:: 1 if repetition % 2 else -1]:
                before = processor_seconds()
                run = bare_loop(folder / "some", workers) if which == "loop" else 0
                times[which].append(run or engine(folder / "some", folder / "data", workers))
                spent[which].append(processor_seconds() - before)
        compare_rows(folder / "some", folder / "data")
        rate = {which: CLIPS / statistics.median(seconds) for which, seconds in times.items()}
        ratio = statistics.median(loop / ours for ours, loop in zip(times["engine"], times["loop"], strict=True))
        print(
            f"mla prepare {rate['engine']:.1f} clips/s, bare loop {rate['loop']:.1f} clips/s with {workers} processes "
            f"({CLIPS} clips, medians of {REPETITIONS}): ratio {ratio:.2f}, at least {LEAST}"
        )
        processor = {which: statistics.median(seconds) for which, seconds in spent.items()}
        print(
            f"processor time {processor['engine']:.1f} s and {processor['loop']:.1f} s: as busy as this machine is, "
            f"the ratio that it would have alone is near {processor['loop'] / processor['engine']:.2f}"
        )
        peaks = {
            count: peak_memory(folder / tree, folder / "data", workers)
            for tree, count in (("some", CLIPS), ("many", MANY))
        }
        shown = ", ".join(f"{count} clips {peak / 2**20:.0f} MiB" for count, peak in peaks.items())
        print(f"peak memory over the imports, all processes: {shown}; at most {MOST / 2**20:.0f} MiB")
    print(
        f"RESULT speed | {ratio:.3f} | ratio | >={LEAST} | clips a second of `mla prepare` / a bare loop that decodes"
    )
    for count, peak in peaks.items():
        print(f"RESULT memory, {count} clips | {peak / 1e6:.0f} | MB | <={MOST / 1e6:.0f} | peak, all processes")
    return 0 if ratio >= LEAST and max(peaks.values()) <= MOST else 1


if __name__ == "__main__":
    sys.exit(main())
