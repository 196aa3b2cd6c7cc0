"""What made a file: versions, commit, digests. Written beside every artefact."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "snakemake", "modal", "sglang", "numpy")


def versions() -> dict[str, str]:
    """Installed versions of what decides a result; packages that are absent are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The package's git commit, with `+` when the work tree differs; `unknown` outside a checkout."""
    if told := os.environ.get("SPECFORGE_COMMIT"):  # in a container, which holds the package without its history
        return told
    here = Path(__file__).parent

    def git(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=False)

    try:
        head = git("rev-parse", "--short=12", "HEAD")
    except FileNotFoundError:
        return "unknown"
    if head.returncode:
        return "unknown"
    return head.stdout.strip() + ("+" if git("status", "--porcelain", "-uno").stdout.strip() else "")
