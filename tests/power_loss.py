"""What a disk may hold after the power failed, from the log of operations that `lives.py` records.

Pessimistic: what is written to a file is sure after the file's fsync, a name (made, renamed, removed) after the fsync
of its folder, and of the rest any part may be there or not, in any order between folders.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

Tree = dict[str, bytes | None]  # relative path -> content; None: a folder


class File:
    """content: what is sure. torn: what it is about to hold; any beginning of it may be on disk."""

    def __init__(self) -> None:
        self.content, self.torn = b"", b""


class Folder:
    """safe: names that are sure. now: names as processes see them. pending: changes in between, each of them atomic."""

    def __init__(self) -> None:
        self.safe: dict[str, File | Folder] = {}
        self.now: dict[str, File | Folder] = {}
        self.pending: list[list[tuple[str, File | Folder | None]]] = []

    def change(self, *changes: "tuple[str, File | Folder | None]") -> None:
        for name, node in changes:
            if node is None:
                self.now.pop(name, None)
            else:
                self.now[name] = node
        self.pending.append(list(changes))

    def sync(self) -> None:
        self.safe, self.pending = dict(self.now), []


class Disk:
    """The folder `start` as it was, then operation after operation."""

    def __init__(self, start: Path, records: list[Path]):
        self.root = Folder()
        for path in sorted(start.rglob("*")):
            node: File | Folder = Folder() if path.is_dir() else File()
            if isinstance(node, File):
                node.content = node.torn = path.read_bytes()
            parent, name = self.place(path.relative_to(start).as_posix())
            parent.now[name] = parent.safe[name] = node
        self.log: list[dict] = []
        for record in records:
            lines = [json.loads(line) for line in (record / "log.jsonl").read_text().splitlines()]
            for line in lines:
                if "content" in line:
                    line["content"] = (record / line["content"]).read_bytes()
            self.log += lines
        self.unsynced_renames: list[str] = []

    def place(self, path: str) -> tuple[Folder, str]:
        """The folder that a path lies in, and its name there. Raises KeyError where there is none."""
        *parents, name = path.split("/")
        folder: File | Folder = self.root
        for part in parents:
            assert isinstance(folder, Folder)
            folder = folder.now[part]
        assert isinstance(folder, Folder)
        return folder, name

    def play(self) -> Iterator[str]:
        """Do one operation after the other; yields what it was."""
        for number, line in enumerate(self.log):
            kind, names = line["kind"], line["names"]
            try:
                places = [self.place(name) if name != "." else (self.root, ".") for name in names]
            except KeyError:  # an attempt that failed, such as to remove what is not there
                continue
            folder, name = places[0]
            node = folder.now.get(name) if name != "." else self.root
            if kind in ("open", "append"):
                if not isinstance(node, File):
                    node = File()
                    folder.change((name, node))
                elif kind == "open":
                    node.content = b""  # cut off, where anybody writes in place
                node.torn = self.next_content(number, names[0])
            elif kind == "sync" and isinstance(node, File):
                node.content = node.torn = line["content"]
            elif kind == "sync" and isinstance(node, Folder):
                node.sync()
            elif kind == "mkdir" and node is None:
                folder.change((name, Folder()))
            elif kind in ("remove", "rmdir") and node is not None:
                folder.change((name, None))
            elif kind == "rename" and node is not None:
                if isinstance(node, File) and node.content != node.torn:
                    self.unsynced_renames.append(names[1])
                target, new = places[1]
                if target is folder:
                    folder.change((name, None), (new, node))
                else:
                    target.change((new, node))
                    folder.change((name, None))
            yield f"{kind} {' '.join(names)}"

    def next_content(self, number: int, path: str) -> bytes:
        """What a file that is opened holds when it is synced."""
        later = (line for line in self.log[number:] if line["kind"] == "sync" and line["names"] == [path])
        return next((line["content"] for line in later if "content" in line), b"")

    def after_power_loss(self, is_kept: Callable[[], bool], length: Callable[[File], bytes]) -> Tree:
        """One of the trees that the disk may hold. is_kept: whether one more unsure name is there."""
        tree: Tree = {}

        def walk(folder: Folder, path: str) -> None:
            names = dict(folder.safe)
            for changes in folder.pending:
                if is_kept():
                    names |= {name: node for name, node in changes if node is not None}
                    for name in (name for name, node in changes if node is None):
                        names.pop(name, None)
            for name, node in sorted(names.items()):
                if isinstance(node, Folder):
                    tree[path + name] = None
                    walk(node, path + name + "/")
                else:
                    tree[path + name] = node.content if node.content == node.torn else length(node)

        walk(self.root, "")
        return tree


def states(start: Path, records: list[Path], rng: np.random.Generator) -> Iterator[tuple[str, Tree]]:
    """Every different tree after every operation: nothing unsure is there, all of it without its content, or a part."""
    disk = Disk(start, records)
    ways: list[tuple[Callable[[], bool], Callable[[File], bytes]]] = [
        (lambda: False, lambda file: file.content),
        (lambda: True, lambda file: file.content),
        (lambda: rng.random() < 0.5, lambda file: file.torn[: int(rng.integers(len(file.torn) + 1))]),
    ]
    seen: list[Tree] = []
    for doing in disk.play():
        for is_kept, length in ways:
            tree = disk.after_power_loss(is_kept, length)
            if tree not in seen:
                seen.append(tree)
                yield doing, tree
    assert not disk.unsynced_renames, disk.unsynced_renames


def restore(tree: Tree, folder: Path) -> Path:
    """Write a tree to an empty folder."""
    folder.mkdir(parents=True)
    for path, content in tree.items():
        if content is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(content)
    return folder
