"""A copy of the repository in which Snakemake runs for real, so that a test may edit code, data and settings."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
SMOKE = REPOSITORY / "tests" / "smoke.yaml"
PARTS = ("Snakefile", "config.yaml", "rules", "scripts", "specforge", "profiles", "experiments")


def make_workspace(folder: Path) -> Path:
    """Copies what a run needs into `folder`, dates included. Returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        source = REPOSITORY / part
        if source.is_dir():
            shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, folder / part)
    return folder


def clone(workspace: Path, folder: Path) -> Path:
    """A finished workspace again, with its dates and with what Snakemake noted about it."""
    shutil.copytree(workspace, folder, ignore=shutil.ignore_patterns("__pycache__", ".work"))
    return folder


def snakemake_command(*arguments: object, overlay: Path | None = SMOKE) -> list[str]:
    """`overlay` is merged over config.yaml; more may follow as --configfile arguments of their own."""
    overlays = ["--configfile", str(overlay)] if overlay else []
    return [sys.executable, "-m", "snakemake", *overlays, *map(str, arguments)]


def environment(workspace: Path) -> dict[str, str]:
    """PYTHONPATH, since in scripts Snakemake puts the workflow's folder behind an installed specforge."""
    return os.environ | {"PYTHONPATH": str(workspace), "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}


def snakemake(
    workspace: Path, *arguments: object, overlay: Path | None = SMOKE
) -> subprocess.CompletedProcess[str]:
    """Standard output and error together, as a user sees them in `stdout`."""
    return subprocess.run(
        snakemake_command(*arguments, overlay=overlay),
        cwd=workspace,
        env=environment(workspace),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=400,
        check=False,
    )


def job_counts(output: str) -> dict[str, int]:
    """{rule: jobs} of the table "Job stats" that a dry run prints, without its total and the target rule."""
    table = re.search(r"^Job stats:\n.*\n-[- ]*\n((?:\S+ +\d+\n)*)", output, re.MULTILINE)
    rows = dict(line.split() for line in table[1].splitlines()) if table else {}
    return {rule: int(count) for rule, count in rows.items() if rule not in {"all", "total"}}


def plan(workspace: Path, *arguments: object, overlay: Path | None = SMOKE) -> dict[str, int]:
    """What a dry run would do: {rule: jobs}, empty when nothing is to be done."""
    result = snakemake(workspace, "-n", *arguments, overlay=overlay)
    assert result.returncode == 0, result.stdout
    counts = job_counts(result.stdout)
    assert counts or "Nothing to be done" in result.stdout, result.stdout
    return counts
