"""What a disk may show after a power loss, from the record of what was done to it.

Bytes that were synced are there. Of others, each page may be there or not, and the size too: what is missing below it
is zeros. A name that was made, changed or removed is so on disk once its folder was synced; before, each change may be
there or not, but never half (a rename is one step), and never without the earlier changes of the same name. That is
weaker than what journaling file systems give, so that what survives here survives there.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ._layer import Call

PAGE = 4096
MODES = ("none", "some", "some", "early", "names", "bytes")
"""Of what was not synced: nothing is there; some of it; all up to a moment; names and sizes alone; bytes alone."""


@dataclass(eq=False)
class Node:
    """A file or folder, and what it held before."""

    is_folder: bool
    content: bytes = b""


@dataclass(frozen=True, eq=False)
class NameChange:
    """What one call changed in folders: (folder, name) -> what stands there now."""

    when: int
    edits: tuple[tuple[Node, str, Node | None], ...]

    @property
    def keys(self) -> set[tuple[int, str]]:
        """The names that it concerns."""
        return {(id(folder), name) for folder, name, _ in self.edits}


Names = dict[tuple[Node, str], Node]
Event = tuple[int, int, "bytes | None"]
"""What happened to a file's bytes: when, offset and bytes; or when, and a new size."""


class Disk:
    """A folder before, and the calls that were made to it."""

    def __init__(self, root: Path) -> None:
        """``root`` as it is now, all of it on disk."""
        self.root = root
        self.top = Node(True)
        self.before: Names = {}
        self._inodes: dict[int, Node] = {root.stat().st_ino: self.top}
        self._take(root, self.top)

    def _take(self, folder: Path, node: Node) -> None:
        for entry in folder.iterdir():
            made = Node(entry.is_dir(), b"" if entry.is_dir() else entry.read_bytes())
            self.before[node, entry.name] = made
            self._inodes[entry.stat().st_ino] = made
            if entry.is_dir():
                self._take(entry, made)

    def after(self, calls: Sequence[Call], mode: str, choose: random.Random) -> Tree:
        """The folder after a power loss that followed these calls; ``all``: without one."""
        history = _History(self, dict(self._inodes))
        for when, call in enumerate(calls):
            history.add(when, call)
        names = history.surviving(mode, choose)
        contents: dict[Node, bytes] = {}
        return Tree(self.top, names, lambda node: contents.setdefault(node, _bytes(node, history, mode, choose)))


class _History:
    """The calls so far, as changes of names and bytes."""

    def __init__(self, disk: Disk, inodes: dict[int, Node]) -> None:
        self.disk = disk
        self.inodes = inodes
        self.now: Names = dict(disk.before)
        self.changes: list[NameChange] = []
        self.durable: set[NameChange] = set()
        self.events: dict[Node, list[Event]] = {}
        self.synced: dict[Node, int] = {}

    def place(self, path: str) -> tuple[Node, str]:
        """Folder and name of a path."""
        *folders, name = Path(path).relative_to(self.disk.root).parts
        node = self.disk.top
        for folder in folders:
            node = self.now[node, folder]
        return node, name

    def add(self, when: int, call: Call) -> None:
        """One more call."""
        if call.name in ("create", "mkdir"):
            node = self.inodes[call.inode] = Node(call.name == "mkdir")
            self._change(when, (*self.place(call.path), node))
        elif call.name in ("unlink", "rmdir"):
            self._change(when, (*self.place(call.path), None))
        elif call.name == "rename":
            old, new = self.place(call.path), self.place(call.other)
            self._change(when, (*old, None), (*new, self.now[old]))
        elif call.name == "exchange":
            one, two = self.place(call.path), self.place(call.other)
            self._change(when, (*one, self.now[two]), (*two, self.now[one]))
        elif call.name == "sync":
            self._sync(when, self.inodes[call.inode])
        elif call.name in ("write", "truncate", "allocate", "empty"):
            data = call.data if call.name == "write" else None
            if call.name == "allocate":  # never makes a file shorter
                size = len(_plain(self._events(self.inodes[call.inode])))
                self._event(when, call, max(size, call.offset), None)
            else:
                self._event(when, call, call.offset, data)

    def _events(self, node: Node) -> list[Event]:
        return self.events.setdefault(node, [(-1, 0, node.content)])

    def _event(self, when: int, call: Call, offset: int, data: bytes | None) -> None:
        self._events(self.inodes[call.inode]).append((when, offset, data))

    def _change(self, when: int, *edits: tuple[Node, str, Node | None]) -> None:
        self.changes.append(NameChange(when, edits))
        for folder, name, node in edits:
            if node is None:
                self.now.pop((folder, name), None)
            else:
                self.now[folder, name] = node

    def _sync(self, when: int, node: Node) -> None:
        self.synced[node] = when
        if node.is_folder:
            self.durable |= {change for change in self.changes if any(edit[0] is node for edit in change.edits)}

    def surviving(self, mode: str, choose: random.Random) -> Names:
        """The names on disk."""
        moment = choose.randrange(self.changes[-1].when + 1) if self.changes else 0
        share = choose.random()
        kept: list[NameChange] = []
        needed: set[tuple[int, str]] = set()
        for change in reversed(self.changes):
            by_chance = {
                "all": True,
                "none": False,
                "some": choose.random() < share,
                "early": change.when < moment,
                "names": True,
                "bytes": False,
            }[mode]
            if by_chance or change in self.durable or change.keys & needed:
                kept.append(change)
                needed |= change.keys
        names = dict(self.disk.before)
        for change in reversed(kept):
            for folder, name, node in change.edits:
                if node is None:
                    names.pop((folder, name), None)
                else:
                    names[folder, name] = node
        return names


def _plain(events: Sequence[Event]) -> bytearray:
    found = bytearray()
    for _, offset, data in events:
        if data is None:
            del found[offset:]
            found.extend(bytes(offset - len(found)))
        else:
            found.extend(bytes(max(0, offset + len(data) - len(found))))
            found[offset : offset + len(data)] = data
    return found


def _bytes(node: Node, history: _History, mode: str, choose: random.Random) -> bytes:
    """A file's bytes on disk."""
    events = history.events.get(node, [(-1, 0, node.content)])
    synced = history.synced.get(node, -1)
    moment = choose.choice([when for when, _, _ in events])
    share = choose.random()

    def survives(when: int, is_size: bool = False) -> bool:
        if when <= synced or mode in ("all", "bytes") or (mode == "names" and is_size):
            return True
        if mode == "early":
            return when < moment
        return mode == "some" and choose.random() < share

    kept: list[Event] = []
    for when, offset, data in events:
        if data is None or when <= synced:
            if survives(when, data is None):
                kept.append((when, offset, data))
        else:
            kept.extend((when, start, part) for start, part in _pages(offset, data) if survives(when))
    return bytes(_plain(kept))


def _pages(offset: int, data: bytes) -> Iterator[tuple[int, bytes]]:
    """A write, page by page."""
    end = offset + len(data)
    start = offset
    while start < end:
        stop = min(end, (start // PAGE + 1) * PAGE)
        yield start, data[start - offset : stop - offset]
        start = stop


class Tree:
    """Folders and files that can be put on a real disk."""

    def __init__(self, top: Node, names: Names, content: Callable[[Node], bytes]) -> None:
        self._top = top
        self._names = names
        self._content = content

    def files(self) -> dict[str, bytes | None]:
        """Path -> bytes, None for a folder."""
        return dict(self._below(self._top, ""))

    def _below(self, folder: Node, prefix: str) -> Iterator[tuple[str, bytes | None]]:
        for (where, name), node in sorted(self._names.items(), key=lambda item: item[0][1]):
            if where is folder:
                yield prefix + name, None if node.is_folder else self._content(node)
                if node.is_folder:
                    yield from self._below(node, f"{prefix}{name}/")

    def put(self, root: Path) -> None:
        """Make it, in an empty folder."""
        for path, content in self.files().items():
            if content is None:
                (root / path).mkdir()
            else:
                (root / path).write_bytes(content)
