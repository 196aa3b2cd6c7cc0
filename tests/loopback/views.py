"""A container's private copy of a volume: what makes a forgotten `commit()` or `reload()` visible."""

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from stat import S_ISDIR

from psutil import Process

from loopback.state import View

FOLDER = ("folder",)


def make(committed: Path, root: Path) -> View:
    """Copies a volume for a container that starts."""
    view = View(root)
    root.mkdir(parents=True)
    reload(view, committed)
    return view


def entries(root: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """All below `root` except what goes away meanwhile: a function may work on while its volume is committed."""
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            path = Path(folder, name)
            with suppress(FileNotFoundError):
                yield path, path.lstat()


def scan(root: Path) -> dict[str, tuple]:
    """{path: what changes whenever the file does}, folders before what is in them."""
    return {
        str(path.relative_to(root)): FOLDER if S_ISDIR(s.st_mode) else (s.st_ino, s.st_mtime_ns, s.st_size)
        for path, s in entries(root)
    }


def commit(view: View, committed: Path) -> None:
    """Brings what the container changed to the committed tree; of two writers the later one wins."""
    mine, agreed = scan(view.root), view.agreed
    changed = [name for name in mine if name not in agreed or mine[name] != agreed[name][0]]
    gone = agreed.keys() - mine.keys()
    _apply(view.root, committed, changed, gone)
    theirs = scan(committed)
    agreed.update({name: (mine[name], theirs[name]) for name in changed if name in theirs})
    for name in gone:
        agreed.pop(name)


def reload(view: View, committed: Path) -> None:
    """Brings what others committed to the container, except where it has changes of its own."""
    mine, theirs, agreed = scan(view.root), scan(committed), view.agreed
    own = {n for n in mine.keys() | agreed.keys() if n not in mine or n not in agreed or mine[n] != agreed[n][0]}
    changed = [n for n in theirs if n not in own and (n not in agreed or theirs[n] != agreed[n][1])]
    gone = agreed.keys() - theirs.keys() - own
    _apply(committed, view.root, changed, gone)
    mine = scan(view.root)
    agreed.update({name: (mine[name], theirs[name]) for name in changed if name in mine})
    for name in gone:
        agreed.pop(name)


def _apply(source: Path, target: Path, changed: list[str], gone: set[str]) -> None:
    for name in sorted(gone, reverse=True):
        path = target / name
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        else:
            path.unlink(missing_ok=True)
    for name in changed:
        if (source / name).is_dir() and not (source / name).is_symlink():
            (target / name).mkdir(parents=True, exist_ok=True)
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).unlink(missing_ok=True)
        with suppress(FileNotFoundError):  # renamed since it was seen, by a step that works meanwhile
            shutil.copy2(source / name, target / name, follow_symlinks=False)


def open_files(view: View, pid: int) -> list[str]:
    """Paths in the volume that a process below `pid` holds open, mapped or as its working directory."""
    known = [(view.root, view.root.stat()), *entries(view.root)]
    files = {(status.st_dev, status.st_ino): path for path, status in known}
    held = {key for process in Process(pid).children(recursive=True) for key in _held(Path(f"/proc/{process.pid}"))}
    return sorted(str(files[key].relative_to(view.root)) for key in held & files.keys())


def _held(process: Path) -> set[tuple[int, int]]:
    held: set[tuple[int, int]] = set()
    try:
        links = [process / "cwd", *(process / "fd").iterdir()]
        maps = (process / "maps").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return held
    for link in links:
        with suppress(FileNotFoundError):  # closed meanwhile
            status = link.stat()
            held.add((status.st_dev, status.st_ino))
    for line in maps:
        _, _, _, device, inode, *_ = line.split(maxsplit=5)
        major, minor = (int(part, 16) for part in device.split(":"))
        held.add((os.makedev(major, minor), int(inode)))
    return held
