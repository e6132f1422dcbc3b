"""Random draws keyed by what they are for.

Every draw of a run is keyed by (seed, purpose, epoch, step, modality name, ...). So there is no generator state to
save, and nothing that reading ahead, resuming or the order of modalities could shift.
"""

import hashlib

import numpy as np


def derive(seed: int, *parts: str | int) -> int:
    """A 63-bit integer that depends on the seed and every part, in order, and on nothing else.

    >>> derive(0, "order", 3, "audio") == derive(0, "order", 3, "audio")
    True
    >>> derive(0, "order", 3, "audio") == derive(0, "order", 3, "visual")
    False
    """
    key = "\x1f".join([str(int(seed)), *(f"{type(part).__name__}:{part}" for part in parts)])
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # 63 bits: torch's seeds are signed


def generator(seed: int, *parts: str | int) -> np.random.Generator:
    """A NumPy generator for one purpose; see `derive`."""
    return np.random.default_rng(derive(seed, *parts))
