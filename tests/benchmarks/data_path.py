"""How fast are batches made, without a model, next to what one would write with torch's DataLoader?

    python tests/benchmarks/data_path.py

Batches of 16 with audio 1 x 1024 x 128 and three 224 x 224 frames. Ours come as in training, from a store that
`mla prepare` wrote (`TrainLoader.epoch`, its background thread; nothing is kept in memory), and are float32 and
normalised. Theirs: JPEG files of 480 x 360 and `.npy` spectrograms, per sample PIL and torchvision's RandomResizedCrop,
flip, ToTensor and Normalize (without augmentation: Resize), by a DataLoader with the faster of 0 and 2 workers. The
crop's area share is at least 0.08 in both. Both run in turn, seconds of the clock, medians of 5 epochs; the files are
in the kernel's cache for both. Exit code 1 where a ratio misses its limit.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from _clips import DISTINCT, experiment, pictures
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from mla_cli.data import loader
from mla_cli.engine.session import Session

LIMITS = {"with augmentation": 2.5, "without augmentation": 15.0}  # theirs / ours
CLIPS, BATCH, REPETITIONS = 160, 16, 5
CROP = 0.08


class Files(Dataset):
    """Theirs: one sample from its files."""

    def __init__(self, folder: Path, count: int, augmented: bool):
        self.folder, self.count = folder, count
        shape = [transforms.RandomResizedCrop(224, scale=(CROP, 1)), transforms.RandomHorizontalFlip()]
        self.transform = transforms.Compose(
            [
                *(shape if augmented else [transforms.Resize((224, 224))]),
                transforms.ToTensor(),
                transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
            ]
        )

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        number = index % DISTINCT
        frames = []
        for i in range(3):
            with Image.open(self.folder / f"{number}_{i}.jpg") as picture:
                frames.append(self.transform(picture.convert("RGB")))
        audio = torch.from_numpy(np.load(self.folder / f"{number}.npy"))
        return (audio + 4.0) / 3.0, torch.stack(frames), index % 6


def seconds(batches: Callable[[], object]) -> float:
    """Seconds per batch of one pass."""
    begin = time.perf_counter()
    count = sum(1 for _ in batches())  # type: ignore[attr-defined]
    return (time.perf_counter() - begin) / count


def compare(name: str, session: Session, files: Path) -> bool:
    """Print one setting; True if it keeps its limit."""
    augmented = name == "with augmentation"
    samples = len(session.data.splits["train"])
    theirs = {
        workers: DataLoader(
            Files(files, samples, augmented),
            BATCH,
            shuffle=True,
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        for workers in (0, 2)
    }
    epochs = iter(range(1, 1000))
    ours = lambda: session.train_loader.epoch(next(epochs))  # noqa: E731
    for batches in theirs.values():
        seconds(lambda batches=batches: batches)  # the first pass starts workers and fills the kernel's cache
    trial = {workers: seconds(lambda batches=batches: batches) for workers, batches in theirs.items()}
    workers = min(trial, key=lambda w: trial[w])
    seconds(ours)
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(REPETITIONS):
        times["ours"].append(seconds(ours))
        times["theirs"].append(seconds(lambda: theirs[workers]))
    mine, other = (1000 * statistics.median(values) for values in times.values())
    ratio, limit = other / mine, LIMITS[name]
    print(
        f"{name}: {mine:.1f} ms a batch of {BATCH}, DataLoader {other:.1f} ms with {workers} workers "
        f"({', '.join(f'{w}: {1000 * t:.0f} ms' for w, t in trial.items())}): {ratio:.1f} times as fast"
    )
    print(
        f"RESULT data path, {name} | {ratio:.2f} | ratio | >={limit:g} | "
        f"samples/s of the store's batches against a DataLoader over JPEG and .npy, batch {BATCH}, no model"
    )
    return ratio >= limit


def main() -> int:
    """Compare with and without augmentation; 0 if both keep their limits."""
    kept = True
    loader.RESIDENT_BYTES = 0  # so few samples would stay in memory
    with tempfile.TemporaryDirectory(prefix="mla-benchmark-") as place:
        folder = Path(place)
        flags = {"features.audio.frames": 1024, "train.batch_size": BATCH}
        flags |= {f"encoders.{m}": {"name": "convnet", "channels": 4} for m in ("audio", "visual")}
        for name in LIMITS:
            if name == "without augmentation":
                flags["augment"] = {}
            recipe, data = experiment(folder, "cremad", CLIPS, flags)
            if name == "without augmentation":
                recipe.augment = {}
            session = Session(recipe, data, torch.device("cpu"))
            if not (folder / "files").is_dir():
                (folder / "files").mkdir()
                write_files(folder / "files", session)
            kept &= compare(name, session, folder / "files")
    return 0 if kept else 1


def write_files(folder: Path, session: Session) -> None:
    """Theirs on the disk: the same pictures as JPEG, and spectrograms of the store."""
    audio = session.stores["audio"].take(np.arange(DISTINCT))
    for number in range(DISTINCT):
        np.save(folder / f"{number}.npy", audio[number])
        for i, picture in enumerate(pictures(number)):
            Image.fromarray(picture).save(folder / f"{number}_{i}.jpg", quality=90)


if __name__ == "__main__":
    sys.exit(main())
