"""A workspace whose jobs run on the loopback stand-in for Modal, through the real client."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from loopback import Loopback
from workspace import SMOKE, clone, environment, make_workspace, snakemake

SECRETS = {"huggingface-secret": {"HF_TOKEN": "hf_secret_of_the_test"}}
PATIENCE = 240.0  # seconds until something must have happened
TWO = ["ablations=baseline,mixed", "lr_sweep=False"]

needs_namespaces = pytest.mark.skipif(not Loopback.available(), reason="this machine makes no mount namespaces")


@dataclass
class Site:
    """A workspace and the Modal that it talks to."""

    workspace: Path
    server: Loopback

    def command(self, *words: object) -> list[str]:
        return [sys.executable, "-m", *map(str, words)]

    def environment(self, **more: str) -> dict[str, str]:
        return environment(self.workspace) | self.server.environment | more

    def snakemake(self, *arguments: object, config: tuple[str, ...] = (), **how: Any) -> subprocess.CompletedProcess:
        options = ["--config", "backend=modal", *config]
        return snakemake(self.workspace, *arguments, *options, env=how.pop("env", self.environment()), **how)

    def succeed(self, *arguments: object, **how: Any) -> str:
        result = self.snakemake(*arguments, **how)
        assert result.returncode == 0, result.stdout
        return result.stdout

    def refuse(self, *arguments: object, **how: Any) -> str:
        result = self.snakemake(*arguments, **how)
        assert result.returncode != 0, result.stdout
        assert "Traceback" not in result.stdout, result.stdout
        return result.stdout

    def cloud(self, *words: object) -> subprocess.CompletedProcess:
        """`python -m specforge.cloud <words>`."""
        return self._run(self.command("specforge.cloud", *words))

    def modal(self, *words: object) -> subprocess.CompletedProcess:
        return self._run(self.command("modal", *words))

    def _run(self, command: list[str]) -> subprocess.CompletedProcess:
        return subprocess.run(
            command, cwd=self.workspace, env=self.environment(), text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, timeout=120, check=False,
        )  # fmt: skip

    def start(self, *arguments: object, config: tuple[str, ...] = (), settings: dict[str, Any] | None = None):
        """Snakemake in a process group of its own, not waited for; its words go to output.txt."""
        files = [SMOKE]
        if settings:
            (self.workspace / "settings.json").write_text(json.dumps(settings))
            files.append(self.workspace / "settings.json")
        words = [*arguments, "--config", "backend=modal", *config, "--configfile", *files]
        with (self.workspace / "output.txt").open("a") as output:
            return subprocess.Popen(
                self.command("snakemake", *words), cwd=self.workspace, env=self.environment(), stdout=output,
                stderr=output, start_new_session=True,
            )  # fmt: skip

    def log(self, name: str) -> str:
        return (self.workspace / "logs" / f"{name}.log").read_text()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    folder = tmp_path_factory.mktemp("modal")
    variables = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with Loopback(folder, secrets=SECRETS, container_env=variables) as running:
        yield running
        assert running.unknown_rpcs == []


@pytest.fixture
def lone(tmp_path: Path) -> Iterator[Site]:
    """A fresh workspace with a Modal of its own, for a test that meddles with it."""
    with Loopback(tmp_path, secrets=SECRETS, container_env={"OMP_NUM_THREADS": "1"}) as running:
        yield Site(make_workspace(tmp_path / "workspace"), running)
        assert running.unknown_rpcs == []


@pytest.fixture(scope="session")
def remote(server: Loopback, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The smoke experiment with two ablations, run on Modal up to its report. Not to be edited."""
    site = Site(make_workspace(tmp_path_factory.mktemp("remote")), server)
    words = site.succeed("--cores", 12, "all", config=tuple(TWO))
    (site.workspace / "first_run.txt").write_text(words)
    (site.workspace / "spawned.json").write_text(json.dumps(server.spawned))
    return site


@pytest.fixture
def again(remote: Site, tmp_path: Path) -> Site:
    """A copy of that workspace, with the same Modal."""
    return Site(clone(remote.workspace, tmp_path / "copy"), remote.server)


def wait_for(ready: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not ready():
        assert time.monotonic() < deadline, f"no {what}"
        time.sleep(0.1)


def processes_in(workspace: Path) -> list[int]:
    """Ids of processes whose working directory is `workspace`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink() == workspace:
                found.append(int(process.name))
        except OSError:
            continue
    return found
