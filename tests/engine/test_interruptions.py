"""`mla prepare` as a real process: killed at random, out of disk, fed with hostile files."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import raw_trees
from command_line import mla

from mla_cli.data import store as stores

SMALL_SHARDS = "import sys; from mla_cli.data import store; store.SHARD_BYTES = 1; from mla_cli.cli import main; main()"


def command(*words: object) -> list[str]:
    """`mla WORDS` with shards of 64 rows."""
    return [sys.executable, "-c", SMALL_SHARDS, *map(str, words)]


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ---------------------------------------------------------------- killed


@pytest.mark.slow
def test_twenty_kills_and_any_number_of_workers_end_with_the_same_bytes(tmp_path: Path) -> None:
    raw_trees.make_cremad(tmp_path / "raw", actors=40, odd_names=True, truncated=True)  # 4 shards a modality
    shutil.copytree(tmp_path / "raw", tmp_path / "copy")
    how = ("prepare", "cremad", "--root", tmp_path / "raw", "--max-bad", "1")
    whole: dict[str, bytes] = {}
    for workers in (1, 2, 3):
        place = tmp_path / f"whole{workers}"
        begun = time.monotonic()
        subprocess.run(command(*how, "--data-dir", place, "--workers", workers, "-q"), check=True, stdout=-3)
        taken = time.monotonic() - begun
        whole = whole or content(place)
        assert content(place) == whole
    assert len([name for name in whole if name.endswith(".npy")]) == 8
    rng = np.random.default_rng(0)
    kills, finished, place = 0, 0, tmp_path / "killed"
    while kills < 20:
        words = command(*how, "--data-dir", place, "--workers", 1 + kills % 3, "-q")
        process = subprocess.Popen(words, stdout=-3, stderr=-3, start_new_session=True)
        try:
            process.wait(float(rng.uniform(0.3, 1.0) * taken))
            assert process.returncode == 0
        except subprocess.TimeoutExpired:
            if kills % 2:  # the process alone: its workers must not go on beside the next one
                process.kill()
            else:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            continue
        assert content(place) == whole
        finished += 1
        shutil.rmtree(place)
    subprocess.run(command(*how, "--data-dir", place, "--workers", 2, "-q"), check=True, stdout=-3)
    assert content(place) == whole
    assert sorted(path.name for path in place.iterdir()) == [".last", "cremad"]  # nothing partial is left


# ---------------------------------------------------------------- disk full


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = shutil.which("mount") and os.geteuid() == 0
    options = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)]
    if not mounted or subprocess.run(options, capture_output=True).returncode:
        pytest.skip("no right to mount a small file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_one_clear_error_and_the_next_run_goes_on(tmp_path: Path, tiny_disk: Path) -> None:
    raw_trees.make_food101(tmp_path / "raw", pictures=50)  # 300 pictures: 5 shards of 0.79 MB; texts: 0.4 MB
    ballast = tiny_disk / "ballast"
    ballast.write_bytes(b"x" * 600_000)  # two workers fit two shards at once, so that one gets whole; a third does not
    how = ("prepare", "food101", "--root", tmp_path / "raw", "--data-dir", tiny_disk, "--workers", 2)
    full = subprocess.run(command(*how), capture_output=True, text=True)
    assert full.returncode == 1
    assert full.stdout == ""
    assert full.stderr.count("error: ") == 1
    assert "No space left on device" in full.stderr
    assert "Traceback" not in full.stderr
    assert "hint: free some space and run the same command again; what was finished is kept" in full.stderr
    shards = tiny_disk.glob(".food101-*.partial/visual/*.npy")  # complete where the small file beside it exists too
    made = {path.name: path.stat().st_mtime_ns for path in shards if path.with_suffix(".json").is_file()}
    assert made
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=30m", str(tiny_disk)], check=True)
    again = subprocess.run(command(*how), capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    built = {path.name: path.stat().st_mtime_ns for path in (tiny_disk / "food101" / "visual").iterdir()}
    assert made.items() <= built.items()  # not written again
    assert not list(tiny_disk.glob(".food101-*"))


# ---------------------------------------------------------------- hostile files


def mutate(victim: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Flipped bits, truncation, another format under this name, zero length, or huge declared sizes."""
    data = bytearray(victim)
    match rng.integers(6):
        case 0 | 1:
            reach = len(data) if rng.random() < 0.5 else min(len(data), 200)
            for place in rng.integers(reach, size=rng.integers(1, 30)):
                data[place] ^= 1 << int(rng.integers(8))
        case 2:
            del data[int(rng.integers(len(data))) :]
        case 3:
            data = bytearray(other)
        case 4:
            data = bytearray() if rng.random() < 0.5 else bytearray(rng.bytes(int(rng.integers(1, 500))))
        case 5:
            place = int(rng.integers(min(len(data), 300)))
            data[place : place + 4] = b"\xff\xff\xff\x7f"
    return bytes(data)


def hostile_table(folder: Path, count: int, seed: int) -> int:
    """`count` rows with a mutated sound, clip and picture each, and 20 sound ones; returns the number of files."""
    folder.mkdir()
    raw_trees.write_wav(folder / "good.wav", 1)
    raw_trees.write_jpeg(folder / "good.jpg", 1)
    clips = [".mp4", ".flv", ".avi"]
    for suffix in clips:
        raw_trees.write_video(folder / f"good{suffix}", 1)
    good = {path.suffix: path.read_bytes() for path in folder.iterdir()}
    lines = ["id,label,sound,clip,picture"]
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        names = []
        for suffix in (".wav", clips[i % 3], ".jpg"):
            other = good[list(good)[int(rng.integers(len(good)))]]
            (folder / f"f{i}{suffix}").write_bytes(mutate(good[suffix], other, rng))
            names.append(f"f{i}{suffix}")
        lines.append(f"f{i},{'ab'[i % 2]},{','.join(names)}")
    lines += [f"good{i},{'ab'[i % 2]},good.wav,good.mp4,good.jpg" for i in range(20)]
    (folder / "my.csv").write_text("\n".join(lines) + "\n")
    return 3 * count


def hostile_run(folder: Path, count: int, seed: int) -> None:
    files = hostile_table(folder, count, seed)
    sets = [
        f"features.{m}.{pair}" for m, pair in (("clip", "kind=video"), ("clip", "size=16"), ("sound", "kind=fbank"))
    ]
    sets += ["features.sound.frames=40", "features.picture.kind=image", "features.picture.size=16"]
    how = ("prepare", "table", "--table", folder / "my.csv", "--modality", "clip=video", "--file-timeout", "20")
    how += tuple(word for pair in sets for word in ("--set", pair))
    built = mla(*how, "--max-bad", "1", "--data-dir", folder / "data")
    assert built.code == 0, built.stderr
    problems = pd.read_csv(folder / "data" / "my" / "problems.csv", dtype=str)
    assert 0.2 * files < len(problems) < 0.9 * files
    assert problems["reason"].str.len().min() > 0
    index = pd.read_parquet(folder / "data" / "my" / "index.parquet")
    assert set(index["id"]) | set(problems["id"]) == {f"f{i}" for i in range(count)} | {f"good{i}" for i in range(20)}
    assert not set(index["id"]) & set(problems["id"])

    checked = mla(*how, "--check")
    assert checked.code == 1
    listed = [line.split()[0:2] for line in checked.stdout.splitlines() if line.startswith("  f")]
    found = {(str(i), str(m)) for i, m in zip(problems["id"], problems["modality"], strict=True)}
    missed = {tuple(pair) for pair in listed} - found
    assert not missed  # what a check refuses, building refuses too
    assert len(listed) > 0.8 * len(found)  # it looks at one frame of a clip only


@pytest.fixture
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "SHARD_BYTES", 1)


@pytest.mark.slow
@pytest.mark.usefixtures("_small_shards")
def test_hundreds_of_hostile_files_are_decoded_or_listed(tmp_path: Path) -> None:
    hostile_run(tmp_path / "hostile", 100, 7)
