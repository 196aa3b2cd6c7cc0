"""A container's view of the machine: namespaces of its own, an almost empty root, and nothing that outlives it."""

import functools
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SYSTEM = ("usr", "etc", "nix", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "dev", "sys")
READ_ONLY = {"usr", "etc", "nix"}
MOUNT_FLAGS = {os.ST_NOSUID: "nosuid", os.ST_NODEV: "nodev", os.ST_NOEXEC: "noexec", os.ST_NOATIME: "noatime"}
EMPTY = ("root", "tmp", "var/tmp", "proc")


@dataclass(frozen=True)
class Bind:
    """A folder of this machine and where the container sees it."""

    source: Path
    target: str
    read_only: bool = False


@functools.cache
def unshare_flags() -> list[str] | None:
    """How this machine lets this user make namespaces; None when it does not."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"  # which not every user's has
    if not all(shutil.which(tool, path=path) for tool in ("unshare", "setpriv", "chroot", "mount")):
        return None
    for flags in (["-mpf"], ["-rmpf"]):
        probe = ["unshare", *flags, "--kill-child", "bash", "-c", "mount -t proc proc /proc && mount -t tmpfs x /tmp"]
        if subprocess.run(probe, env=os.environ | {"PATH": path}, capture_output=True, check=False).returncode == 0:
            return flags
    return None


def command(root: Path, binds: list[Bind], folder: str, arguments: list[str]) -> list[str]:
    """The command that runs `arguments` in `folder` of a container whose own files are already under `root`.

    All its processes are in one process namespace, so killing the command ends them all; and the kernel kills it
    with the thread that started it. A shell stays process 1: as process 1, Python would ignore its own SIGKILL.
    """
    flags = unshare_flags()
    assert flags is not None, "Loopback.available() is false"
    for name in EMPTY:
        (root / name).mkdir(parents=True, exist_ok=True)
    lines = ["set -e"]
    for name in SYSTEM:
        source = Path("/", name)
        if source.is_symlink():
            (root / name).symlink_to(source.readlink())
        elif source.is_dir():
            lines += _mount(root, Bind(source, str(source), read_only=name in READ_ONLY))
    pythons = {sys.prefix, sys.base_prefix, str(Path(sys.executable).resolve().parents[1])}
    for path in sorted(p for p in pythons if not p.startswith("/usr/")):
        lines += _mount(root, Bind(Path(path), path))
    lines += [f"mount -t proc proc {_quoted(root / 'proc')}", f"mount -t tmpfs tmpfs {_quoted(root / 'dev/shm')}"]
    for bind in binds:
        lines += _mount(root, bind)
    (root / folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
    lines.append(f"chroot {_quoted(root)} env -C {shlex.join([folder, *arguments])}")
    lines.append("exit $?")  # or the shell would put the command above in its own place
    return ["setpriv", "--pdeathsig", "KILL", "unshare", *flags, "--kill-child", "bash", "-c", "\n".join(lines)]


def _mount(root: Path, bind: Bind) -> list[str]:
    target = root / bind.target.lstrip("/")
    target.mkdir(parents=True, exist_ok=True)
    lines = [f"mount --rbind {_quoted(bind.source)} {_quoted(target)}"]
    if bind.read_only:
        # Who is not root may not take off what the mount below has, so the remount repeats it.
        kept = [word for flag, word in MOUNT_FLAGS.items() if os.statvfs(bind.source).f_flag & flag]
        lines.append(f"mount -o {','.join(['remount', 'bind', 'ro', *kept])} {_quoted(target)}")
    return lines


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
