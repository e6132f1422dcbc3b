"""A shard as a memory map, and hints to the kernel: which rows are read soon, and that pages read may go.

Mapped pages count as this process's memory while they are mapped. Letting go of them keeps that flat; what the kernel
keeps of the file in its own cache is free memory to others. Where the system takes no hints they do nothing.
"""

import mmap
from pathlib import Path

import numpy as np

PAGE = mmap.PAGESIZE
FAULT_BYTES = 64 << 10  # one access maps so much around it (Linux' `fault_around_bytes`)


class MappedShard:
    """One `.npy` file. rows: a read-only view, int or float (row, ...)."""

    def __init__(self, path: Path):
        """Raises OSError, ValueError or EOFError for what is no such file."""
        loaded = np.lib.format.open_memmap(path, mode="r")  # `np.load` would take a zip file for an archive of arrays
        self.map = loaded.base if isinstance(loaded.base, mmap.mmap) else None
        self.offset = int(getattr(loaded, "offset", 0))
        self.rows = np.asarray(loaded)  # a plain view: indexing the memmap subclass costs more per batch

    def will_need(self, first: int, last: int) -> None:
        """Have the kernel read rows first, ..., last - 1 now, while we go on."""
        size = self.rows[:1].nbytes
        start = (self.offset + first * size) // PAGE * PAGE
        self.advise("MADV_WILLNEED", start, self.offset + last * size - start)

    def let_go(self) -> None:
        """Unmap the pages that were read; views stay valid, their next use maps the pages again."""
        self.advise("MADV_DONTNEED", 0, self.offset + self.rows.nbytes)

    def advise(self, option: str, start: int, length: int) -> None:
        if self.map is not None and length > 0 and hasattr(mmap, option):
            self.map.madvise(getattr(mmap, option), start, length)
