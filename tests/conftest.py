"""One finished run of the smoke experiment for every test that starts from there."""

import json
import shutil
from pathlib import Path

import pytest
from workspace import make_workspace, succeed

MIDDLE = "1e-2"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of two test processes one makes the finished runs that many tests start from; else a file is one's alone."""
    for item in items:
        shared = {"finished", "remote"} & set(item.fixturenames)
        item.add_marker(pytest.mark.xdist_group("finished" if shared else str(item.path)))


def multiply_runs(workspace: Path) -> None:
    """Stands in for the trainings at the other rates, whose jobs do the same again: copies under their names."""
    for middle in [*workspace.glob(f"checkpoints/*/*/lr{MIDDLE}"), *workspace.glob(f"results/*/*/lr{MIDDLE}")]:
        for rate in ("3e-3", "2e-2"):
            folder = shutil.copytree(middle, middle.with_name(f"lr{rate}"), ignore=shutil.ignore_patterns(".work"))
            for file in folder.glob("*.json"):
                content = json.loads(file.read_text())
                content["run"]["lr"] = rate
                file.write_text(json.dumps(content))
    succeed(workspace, "--touch", "all", "--forcerun", "run_training", "--until", "evaluate")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke experiment up to its report; first_run.txt holds what the first command printed. Not to be edited."""
    workspace = make_workspace(tmp_path_factory.mktemp("finished"))
    words = succeed(workspace, "--cores", 12, "all", "--until", "evaluate", "--config", "lr_sweep=False")
    (workspace / "first_run.txt").write_text(words)
    multiply_runs(workspace)
    succeed(workspace, "--cores", 12, "all")
    return workspace
