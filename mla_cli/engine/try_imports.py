"""Import packages one by one and tell what comes of it; run as a script, in a process of its own, by `mla check`.

Needs nothing of ours. Writes one JSON line before each import and one after it, so that a package whose import ends the
process is known too; then one line with what torch says of the machine.
"""

import importlib
import json
import os
import sys
import warnings
from typing import Any


def tell(**facts: Any) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def machine() -> dict[str, Any]:
    """Devices and threads, and whether the three packages of torch compute together."""
    import torch
    import torchaudio
    import torchvision

    boxes, scores = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1)
    torchvision.ops.nms(boxes, scores, 0.5)  # compiled: fails where it was built for another torch
    torchaudio.transforms.MelSpectrogram(8000, n_fft=64, n_mels=4)(torch.zeros(256))
    cuda = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    if cuda:
        torch.ones(2, device="cuda").sum().item()  # a driver that is too old fails here
    return {
        "torch": torch.__version__,
        "cuda": cuda,
        "cuda_build": torch.version.cuda,
        "mps": torch.backends.mps.is_available(),
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def main(names: list[str]) -> None:
    warnings.simplefilter("ignore")
    imported = set()
    for name in names:
        tell(module=name)
        try:
            importlib.import_module(name)
        except BaseException as error:  # whatever its import raises is the finding
            tell(module=name, error=f"{type(error).__name__}: {error}")
        else:
            imported.add(name)
            tell(module=name, error=None)
    if imported >= {"torch", "torchvision", "torchaudio"}:
        tell(module="torch, torchvision, torchaudio")
        try:
            tell(machine=machine())
        except BaseException as error:
            tell(module="torch, torchvision, torchaudio", error=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
