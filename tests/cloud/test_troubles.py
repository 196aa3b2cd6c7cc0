"""What goes wrong on Modal: one sentence each, and what can be mended is."""

import os
import signal
from pathlib import Path

import pytest
from cloud_site import SECRETS, Site, needs_namespaces, wait_for
from grpclib import Status
from loopback import Loopback
from workspace import make_workspace

pytestmark = [pytest.mark.pipeline, needs_namespaces]

PREPARED = "datasets/chats_train.jsonl"
SLOW_TARGET = {"tiny_target": {"steps": 100000}}
TARGET = "checkpoints/targets/tiny-chats/target.json"


def prepare(site: Site, **how: object) -> str:
    return site.refuse("--cores", 1, PREPARED, **how)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory):
    """A workspace that has nothing yet; each test here is refused, or makes the data set anew."""
    folder = tmp_path_factory.mktemp("troubles")
    with Loopback(folder, secrets=SECRETS, container_env={"OMP_NUM_THREADS": "1"}) as running:
        yield Site(make_workspace(folder / "workspace"), running)
        assert running.unknown_rpcs == []


def test_a_wrong_token(site: Site):
    words = prepare(site, env=site.environment(MODAL_TOKEN_SECRET="as-wrong"))
    assert "Modal refused the token, or there is none" in words
    assert "run `modal setup`, or set MODAL_TOKEN_ID and MODAL_TOKEN_SECRET." in words


def test_no_token(site: Site):
    assert "run `modal setup`" in prepare(site, env=site.environment(MODAL_TOKEN_ID="", MODAL_TOKEN_SECRET=""))


def test_an_unknown_environment(site: Site):
    words = prepare(site, settings={"modal": {"environment": "nowhere"}})
    assert "see `modal environment list`" in words


def test_an_image_that_cannot_be_built(site: Site):
    site.server.fail_image_builds = "no matching distribution found for torch==99"
    try:
        words = prepare(site)
    finally:
        site.server.fail_image_builds = None
    assert "the image could not be built" in words
    assert "torch==99" in words


def test_a_missing_secret(tmp_path: Path):
    with Loopback(tmp_path, secrets={}) as running:
        words = prepare(Site(make_workspace(tmp_path / "workspace"), running))
    assert "make it with `modal secret create huggingface-secret HF_TOKEN=...`" in words


def test_a_quota(site: Site):
    site.server.refuse_calls = (Status.RESOURCE_EXHAUSTED, "GPU limit of the workspace reached")
    try:
        words = prepare(site)
    finally:
        site.server.refuse_calls = None
    assert "Modal's quota is used up (GPU limit of the workspace reached)" in words
    assert "--resources modal_runs=" in words


def test_bad_input_is_the_same_sentence_as_here_and_is_not_retried(site: Site):
    before = site.server.spawned
    words = prepare(site, settings={"prepare": {"test_share": 1.0}})
    assert "Error: " in words
    assert "prepare.test_share" in words
    assert site.server.spawned - before == {"prep_dataset": 1}


def test_a_damaged_download_is_fetched_again(site: Site):
    site.server.corrupt_downloads = 2  # the first may hit a label, whose file is then uploaded again
    words = site.succeed("--cores", 1, PREPARED)
    assert site.server.corrupt_downloads == 0
    assert "came down damaged (attempt 1 of 3)" in words


def test_the_budget_refuses_a_run_before_anything_starts(site: Site):
    before = site.server.spawned
    words = site.refuse("--cores", 1, "all", config=("budget=0.5",))
    assert "more than budget, 0.50; nothing was started" in words
    assert site.server.spawned == before


def test_a_timeout_says_what_to_raise(site: Site):
    short = {"modal": {"timeout_hours": 0.002, "retries": 0}}
    words = site.refuse("--cores", 2, TARGET, settings=SLOW_TARGET | short)
    assert "every attempt ran into its timeout" in words
    assert "modal.timeout_hours" in words


def test_a_call_that_failed_while_nobody_waited_is_told_of_and_started_anew(site: Site):
    once = {"tiny_target": {"steps": 99999}, "modal": {"retries": 0}}
    before = site.server.spawned["train_tiny_target"]
    process = site.start("--cores", 2, TARGET, settings=once)
    wait_for(lambda: site.server.spawned["train_tiny_target"] > before, "call")
    wait_for(lambda: "train_tiny_target" in site.cloud("calls").stdout, "note in the ledger")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    site.server.kill_container("train_tiny_target")
    again = site.start("--cores", 2, TARGET, settings=once)
    wait_for(lambda: site.server.spawned["train_tiny_target"] == before + 2, "new call")
    wait_for(lambda: "started as call" in site.log("train_tiny_target/chats"), "its note")
    os.killpg(again.pid, signal.SIGINT)
    again.wait()
    log = site.log("train_tiny_target/chats")
    assert "is over (it failed: the container was lost on every attempt" in log
    assert "starting anew" in log
    site.cloud("cancel")


def test_a_data_set_that_is_not_there_names_the_command_and_the_names(site: Site):
    for command in ("regenerate_dataset", "check_dataset_exists"):
        result = site.modal("run", "-m", f"specforge.cloud.commands::{command}", "--dataset", "nowhere")
        assert result.returncode != 0
        assert "Dataset 'nowhere' not found in volume" in result.stdout
        assert "specforge.cloud.commands::prep_dataset --dataset nowhere" in " ".join(result.stdout.split())
        assert "synthetic" in result.stdout
        assert "Traceback" not in result.stdout


def test_steps_by_hand(site: Site):
    options = ("--dataset", "synthetic", "--sample-size", 40, "--split-eval")
    result = site.modal("run", "-m", "specforge.cloud.commands::prep_dataset", *options)
    assert result.returncode == 0, result.stdout
    assert '"kept": 40' in result.stdout
    assert (site.server.volume("specforge-datasets") / "synthetic_test.jsonl").is_file()
    found = site.modal("run", "-m", "specforge.cloud.commands::check_dataset_exists", "--dataset", "synthetic")
    assert found.returncode == 0, found.stdout
    small = site.modal("run", "-m", "specforge.cloud.commands::prep_test_dataset", "--sample-size", 20)
    assert small.returncode == 0, small.stdout
    assert (site.server.volume("specforge-datasets") / "synthetic-test_train.jsonl").is_file()
