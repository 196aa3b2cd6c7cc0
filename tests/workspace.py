"""A copy of the repository in which Snakemake runs for real, so that a test may edit code, data and settings."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from specforge.data.synthetic import generate

REPOSITORY = Path(__file__).resolve().parents[1]
SMOKE = REPOSITORY / "tests" / "smoke.yaml"
CHATS = "chats.jsonl"
PARTS = ("Snakefile", "config.yaml", "constraints.txt", "rules", "scripts", "specforge", "profiles", "experiments")


def make_workspace(folder: Path) -> Path:
    """Copies what a run needs into `folder` with its dates, writes the chat file of smoke.yaml, returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        source = REPOSITORY / part
        if source.is_dir():
            shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.is_file():
            shutil.copy2(source, folder / part)
    # Above 1 MB, where Snakemake goes by a file's date instead of its checksum.
    rows = [record | {"note": "x" * 30_000} for record in generate(40, 0)]
    (folder / CHATS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def clone(workspace: Path, folder: Path) -> Path:
    """A finished workspace again, with its dates and with what Snakemake noted about it."""
    shutil.copytree(workspace, folder, ignore=shutil.ignore_patterns("__pycache__", ".work"))
    return folder


def environment(workspace: Path) -> dict[str, str]:
    """PYTHONPATH, since in scripts Snakemake puts the workflow's folder behind an installed specforge."""
    return os.environ | {"PYTHONPATH": str(workspace), "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}


def snakemake(
    workspace: Path,
    *arguments: object,
    settings: dict[str, Any] | None = None,
    overlays: Sequence[Path] = (SMOKE,),
    env: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs it with config.yaml, `overlays` and `settings` merged in that order; all its words are in `stdout`."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(settings or {}, file)
        file.flush()
        configfiles = [*map(str, overlays), *([file.name] if settings else [])]
        command = [sys.executable, "-m", "snakemake", *map(str, arguments)]
        return subprocess.run(
            [*command, "--configfile", *configfiles] if configfiles else command,
            cwd=workspace,
            env=env or environment(workspace),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=400,
            check=False,
        )


def succeed(workspace: Path, *arguments: object, **how: Any) -> str:
    """As `snakemake`, which must end well; its words."""
    result = snakemake(workspace, *arguments, **how)
    assert result.returncode == 0, result.stdout
    return result.stdout


def job_counts(output: str) -> dict[str, int]:
    """{rule: jobs} of the table "Job stats" that a dry run prints, without its total and the target rule."""
    table = re.search(r"^Job stats:\n.*\n-[- ]*\n((?:\S+ +\d+\n)*)", output, re.MULTILINE)
    rows = dict(line.split() for line in table[1].splitlines()) if table else {}
    return {rule: int(count) for rule, count in rows.items() if rule not in {"all", "total"}}


def plan(workspace: Path, *arguments: object, **how: Any) -> dict[str, int]:
    """What a dry run would do: {rule: jobs}, empty when nothing is to be done. `how` as for `snakemake`."""
    result = snakemake(workspace, "-n", *arguments, **how)
    assert result.returncode == 0, result.stdout
    counts = job_counts(result.stdout)
    assert counts or "Nothing to be done" in result.stdout, result.stdout
    return counts
