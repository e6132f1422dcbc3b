"""Hundreds of `kill -9`, and every disk that a power loss may leave: does each story end with the same bytes?

    python tests/long/kills.py [--kills 100] [--seed 0]
    python tests/long/kills.py --power [--most 1000]

A story is prepare + train + eval of built-in data (two views of mfeat). Prints where the kills hit, in which step and
phase, or how many states of the disk were taken up; ends with an error at the first story that ends otherwise.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from lives import STORY, Kills, Lives, begin
from power_loss import restore, states


def kill(lives: Lives, folder: Path, count: int, seed: int) -> None:
    """`count` kills, and where they hit."""
    begun, kills = time.monotonic(), Kills(lives, folder, np.random.default_rng(seed))
    while len(kills.places) < count:
        kills.one_story(count)
        print(f"{len(kills.places)} kills, {kills.stories} stories, {time.monotonic() - begun:.0f} s", flush=True)
    for (step, phase), number in sorted(Counter(kills.places).items()):
        print(f"{number:6d}  {step}: {phase}")
    seconds = time.monotonic() - begun
    print(f"{count} kills in {seconds:.0f} s: every story ended with the same {len(kills.whole)} files")


def lose_power(lives: Lives, folder: Path, most: int, seed: int) -> None:
    """Every state that the disk may be in, or `most` of them drawn at random; the story goes on from each."""
    begun, rng = time.monotonic(), np.random.default_rng(seed)
    place, start, records = begin(folder / "whole"), begin(folder / "start"), []
    for step, words in STORY.items():
        records.append(folder / f"record-{step}")
        lives.live(words.split(), place, record=str(records[-1]))
    whole = lives.story(place)
    found = list(states(start, [r for r in records if (r / "log.jsonl").is_file()], rng))
    chosen = sorted(rng.permutation(len(found))[:most])
    for number, index in enumerate(chosen, 1):
        doing, tree = found[index]
        again = lives.story(restore(tree, folder / "again"))
        wrong = sorted(name for name in again.keys() | whole.keys() if again.get(name) != whole.get(name))
        assert not wrong, (doing, wrong)
        shutil.rmtree(folder / "again")
        if number % 20 == 0:
            print(f"{number} of {len(chosen)} states, {time.monotonic() - begun:.0f} s", flush=True)
    print(f"{len(chosen)} of {len(found)} states of the disk: every story ended with the same {len(whole)} files")


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--kills", type=int, default=100)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--power", action="store_true")
    options.add_argument("--most", type=int, default=1000)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as name, Lives() as lives:
        if chosen.power:
            lose_power(lives, Path(name), chosen.most, chosen.seed)
        else:
            kill(lives, Path(name), chosen.kills, chosen.seed)


if __name__ == "__main__":
    main()
