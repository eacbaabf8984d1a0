"""What a power cut may leave of a sequence of file operations, worked out from a recording of the real ones.

The recording is strace's. The model is that of Pillai et al. 2014 ("All File Systems Are Not Created Equal",
section 3): what was synced is on the disk; of all else anything may be, in any combination. Data of a file is kept by
fsync of the file, its name by fsync of the directory. A rename is one change, also between two directories.
"""

import functools
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_CALLS = (
    "openat,mkdir,write,pwrite64,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,rmdir,ftruncate,link,symlink"
)
_LINE = re.compile(r"(\w+)\((.*)\) += (\d+)(?:<.*>)?$")
_TEXT = re.compile(r'"((?:[^"\\]|\\.)*)"')
_FD = re.compile(r"(?:AT_FDCWD|\d+)<((?:[^>\\]|\\.)*)>")


@dataclass
class Node:
    """A file or a directory. Of a file `synced` is what is surely on the disk."""

    directory: bool
    data: bytes = b""
    synced: bytes = b""


@dataclass
class Change:
    """One change of names: entries that go and that come, each (directory, name)."""

    gone: tuple[Node, str] | None
    come: tuple[Node, str, Node] | None
    durable: bool = False


@dataclass
class Disk:
    """The operations so far."""

    root: Node = field(default_factory=lambda: Node(directory=True))
    changes: list[Change] = field(default_factory=list)

    def tree(self, chosen: Sequence[Change] | None = None) -> dict[int, dict[str, Node]]:
        """Return the entries of each directory after the chosen changes, or all."""
        entries: dict[int, dict[str, Node]] = {}
        for change in self.changes if chosen is None else chosen:
            if change.gone is not None:
                entries.get(id(change.gone[0]), {}).pop(change.gone[1], None)
            if change.come is not None:
                entries.setdefault(id(change.come[0]), {})[change.come[1]] = change.come[2]
        return entries

    def find(self, path: str) -> tuple[Node, str, Node | None]:
        """Return the directory of a path, its last name, and what is there now."""
        entries, node = self.tree(), self.root
        *folders, name = path.split("/")
        for folder in folders:
            node = entries[id(node)][folder]
        return node, name, entries.get(id(node), {}).get(name)

    def node(self, path: str) -> Node:
        """Return what is at a path now."""
        if not path:
            return self.root
        found = self.find(path)[2]
        assert found is not None, path
        return found


@dataclass
class Record:
    """One operation: the call, its paths below the recorded directory, and what was written."""

    call: str
    paths: list[str]
    content: bytes = b""


def record(strace: str, program: Sequence[str], root: Path, log: Path) -> list[Record]:
    """Run a program and return its changes below `root`, and its writes to standard output as `say`."""
    options = ["-f", "-y", "-xx", "-s", "100000000", "-e", "signal=none", "-e", f"trace={_CALLS}", "-o", str(log)]
    subprocess.run([strace, *options, *program], check=True, stdout=subprocess.DEVNULL, timeout=120)
    records = [found for line in _lines(log.read_text()) if (found := _parse(line, str(root))) is not None]
    begin = next(number for number, found in enumerate(records) if found.paths == ["begin"])
    return records[begin + 1 :]


def _lines(log: str) -> Iterator[str]:
    """Join the halves of calls during which another thread was seen; a call counts when it ends."""
    begun: dict[str, str] = {}
    for line in log.splitlines():
        process, _, rest = line.partition(" ")
        if rest.endswith("<unfinished ...>"):
            begun[process] = rest.removesuffix("<unfinished ...>").rstrip()
        elif (resumed := re.match(r" *<\.\.\. \w+ resumed>(.*)", rest)) is not None:
            yield f"{begun.pop(process)}{resumed[1]}".strip()
        else:
            yield rest.strip()


def _parse(line: str, root: str) -> Record | None:
    match = _LINE.match(line)
    if match is None:  # a call that failed, or a process that ended
        return None
    call, arguments, _ = match.groups()
    texts, descriptors = [_decode(text) for text in _TEXT.findall(arguments)], _FD.findall(arguments)
    if call in {"write", "pwrite64"} and arguments.startswith("1<"):
        return Record("say", [], _bytes(_TEXT.findall(arguments)[0]))
    if call in {"write", "pwrite64", "fsync", "fdatasync", "ftruncate"}:
        paths = [_decode(descriptors[0])]
    else:
        bases = [_decode(text) for text in descriptors] or [""]
        paths = [str(Path(bases[min(n, len(bases) - 1)], text)) for n, text in enumerate(texts)]
    if not all(path == root or path.startswith(root + "/") for path in paths):
        return None
    below = [path[len(root) + 1 :] for path in paths]
    if call == "openat" and "O_CREAT" not in arguments and "O_TRUNC" not in arguments:
        return None
    content = _bytes(_TEXT.findall(arguments)[0]) if "write" in call else b""
    return Record("rmdir" if call == "unlinkat" and "AT_REMOVEDIR" in arguments else call, below, content)


def _bytes(text: str) -> bytes:
    return bytes(int(code, 16) for code in text.split("\\x")[1:])


def _decode(text: str) -> str:
    return re.sub(r"\\x([0-9a-f]{2})", lambda found: chr(int(found[1], 16)), text)


def apply(disk: Disk, operation: Record) -> None:
    """Let one operation happen."""
    call, paths = operation.call, operation.paths
    if call in {"fsync", "fdatasync"}:
        synced = disk.node(paths[0])
        synced.synced = synced.data
        for change in disk.changes:
            if (change.gone and change.gone[0] is synced) or (change.come and change.come[0] is synced):
                change.durable = True
    elif call == "write":
        disk.node(paths[0]).data += operation.content
    elif call in {"openat", "mkdir"}:
        folder, name, there = disk.find(paths[0])
        if there is not None:  # O_TRUNC
            there.data = b""
            return
        disk.changes.append(Change(None, (folder, name, Node(directory=call == "mkdir"))))
    elif call.startswith("rename"):
        (before, old, node), (after, new, _) = disk.find(paths[0]), disk.find(paths[1])
        assert node is not None
        disk.changes.append(Change((before, old), (after, new, node)))
    elif call in {"unlink", "unlinkat", "rmdir"}:
        folder, name, _ = disk.find(paths[0])
        disk.changes.append(Change((folder, name), None))
    else:
        raise AssertionError(f"no model of {call}: {paths}")


def crashes(disk: Disk, chance: random.Random) -> Iterator[dict[str, bytes | None]]:
    """Give the trees that a crash at this moment may leave: path -> content, None for a directory."""
    everything, durable = disk.changes, [change for change in disk.changes if change.durable]
    datas = (_whole, _synced, _zeros, _half)
    for data in datas:
        yield _files(disk, everything, data)
    for data in datas[:2]:
        yield _files(disk, durable, data)
    pending = [change for change in disk.changes if not change.durable]
    for change in pending:
        yield _files(disk, [other for other in everything if other is not change], _whole)
        yield _files(disk, [other for other in everything if other.durable or other is change], _synced)
    for _ in range(6):
        chosen = [change for change in everything if change.durable or chance.random() < 0.5]
        fates: dict[int, Callable[[Node], bytes]]
        fates = {id(change.come[2]): chance.choice(datas) for change in chosen if change.come is not None}
        yield _files(disk, chosen, functools.partial(_fated, fates))


def _fated(fates: dict[int, Callable[[Node], bytes]], node: Node) -> bytes:
    return fates[id(node)](node)


def _files(disk: Disk, changes: Sequence[Change], data: Callable[[Node], bytes]) -> dict[str, bytes | None]:
    entries = disk.tree(changes)
    found: dict[str, bytes | None] = {}

    def walk(folder: Node, prefix: str) -> None:
        for name, child in entries.get(id(folder), {}).items():
            found[prefix + name] = None if child.directory else data(child)
            walk(child, f"{prefix}{name}/")

    walk(disk.root, "")
    return found


def _whole(node: Node) -> bytes:
    return node.data


def _synced(node: Node) -> bytes:
    return node.synced


def _zeros(node: Node) -> bytes:
    return node.synced + bytes(max(len(node.data) - len(node.synced), 0))


def _half(node: Node) -> bytes:
    return node.synced if node.synced == node.data else node.data[: len(node.data) // 2]


def saving(root: Path) -> list[str]:
    """Return the command of the program that is recorded."""
    return [sys.executable, "-m", "tests.chaos.saves", str(root)]
