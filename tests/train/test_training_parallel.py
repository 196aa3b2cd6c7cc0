"""Two processes (gloo) against one: the same training; killed, preempted and refused like one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_training import STEPS, arguments, same_result, states

from specforge.errors import UserError
from specforge.files import read_json, read_jsonl
from specforge.steps.run_training import run_training

RUN = """
import json, sys
from specforge.cloud.run import told
from specforge.steps.run_training import run_training
told(sys.argv[2], run_training, **json.loads(sys.argv[1]))
"""


def weights(folder: Path) -> torch.Tensor:
    tensors = load_file(folder / "draft" / "model.safetensors")
    return torch.cat([x.flatten() for name, x in sorted(tensors.items()) if x.is_floating_point()])


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    run_training(**arguments(data, folder, held_out=2, validate_every=5))
    return folder


@pytest.fixture(scope="module")
def paired(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("paired")
    run_training(**arguments(data, folder, held_out=2, validate_every=5), processes=2)
    return folder


def check_close(one: Path, other: Path, weight: float = 1e-6) -> None:
    """The same losses, norms, held-out figures to 1e-6, and weights as near as ten AdamW steps leave them."""
    for a, b in zip(read_jsonl(one / "metrics.jsonl"), read_jsonl(other / "metrics.jsonl"), strict=True):
        assert a.keys() == b.keys()
        for key in {"loss", "grad_norm", "ce", "acceptance"} & a.keys():
            assert a[key] == pytest.approx(b[key], rel=1e-6), key
        if "held_out" in a:
            assert a["grad_norm_by_term"] == pytest.approx(b["grad_norm_by_term"], rel=1e-5)
            assert a["held_out"]["accept_length"] == pytest.approx(b["held_out"]["accept_length"], rel=1e-6)
    torch.testing.assert_close(weights(one), weights(other), rtol=0, atol=weight)
    assert read_json(one / "manifest.json")["tokens"] == read_json(other / "manifest.json")["tokens"]


def test_two_processes_train_what_one_does(alone, paired):
    check_close(alone, paired)
    rows = list(read_jsonl(alone / "metrics.jsonl"))
    assert [row["step"] for row in rows if "held_out" in row] == [5, 10]
    assert set(rows[-1]["grad_norm_by_term"]) == {"lambda_ce", "lambda_rkl", "beta_hinge"}


def test_micro_batches_add_up_to_the_whole_batch(data, alone, tmp_path):
    run_training(**arguments(data, tmp_path, held_out=2, validate_every=5, micro_tokens=1))
    check_close(alone, tmp_path)


def test_rollouts_draw_the_same_however_the_batch_is_split(data, tmp_path):
    folders = [tmp_path / name for name in ("alone", "micro", "paired")]
    for folder, changes, processes in zip(folders, ({}, {"micro_tokens": 1}, {}), (1, 1, 2), strict=True):
        call = arguments(data, folder, held_out=2, validate_every=5, rollout="on_policy", **changes)
        run_training(**call, processes=processes)
    check_close(folders[0], folders[1], 1e-5)  # were other tokens drawn, losses would differ in the first digits
    check_close(folders[0], folders[2], 1e-5)


def test_what_did_not_fit_is_done_again_in_halves_and_counted_once(data, alone, tmp_path, monkeypatch):
    module = sys.modules["specforge.train.gradients"]
    plain, calls = module.unrolled_loss, []

    def failing(*args):
        calls.append(1)
        loss = plain(*args)
        if len(calls) == 3:  # in the middle of a step, after a piece whose gradients are there already
            raise torch.OutOfMemoryError("simulated")
        return loss

    monkeypatch.setattr(module, "unrolled_loss", failing)
    longest = 160
    run_training(**arguments(data, tmp_path, held_out=2, validate_every=5, micro_tokens=longest))
    check_close(alone, tmp_path)
    assert len(calls) > STEPS


def test_a_target_spread_over_both_processes_teaches_the_same(data, tmp_path_factory):
    folders = {}
    target = two_headed(data, tmp_path_factory.mktemp("target"))
    for name, changes, processes in (("one", {}, 1), ("spread", {"target_tp": 2}, 2)):
        folders[name] = tmp_path_factory.mktemp(name)
        call = arguments(data, folders[name], held_out=2, validate_every=5, **changes) | {"target": str(target)}
        run_training(**call, processes=processes)
    one, spread = (list(read_jsonl(folder / "metrics.jsonl")) for folder in folders.values())
    for a, b in zip(one, spread, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        if "held_out" in a:
            assert a["held_out"]["accept_length"] == pytest.approx(b["held_out"]["accept_length"], rel=1e-4)


def two_headed(data: Path, folder: Path) -> Path:
    """The target with a key-value head for each process."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(data / "model")
    config.num_key_value_heads = 2
    with torch.random.fork_rng():
        torch.manual_seed(3)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    (folder / "target.json").write_text(json.dumps({"model": str(folder / "model"), "revision": None, "sha256": "0"}))
    return folder / "target.json"


def test_a_target_spread_over_some_of_them_is_refused(data, tmp_path):
    with pytest.raises(UserError, match="target_tp is 3, but 2 processes train"):
        run_training(**arguments(data, tmp_path, target_tp=3), processes=2)


def started(data: Path, folder: Path) -> subprocess.Popen:
    """Two processes at work on it, in a process of their own that the test may kill."""
    folder.mkdir(exist_ok=True)
    call = arguments(data, folder, held_out=2, validate_every=5, save_every=1) | {"processes": 2}
    command = [sys.executable, "-c", RUN, json.dumps(call), str(folder / "log")]
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True)


def until(condition, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def workers(folder: Path) -> list[int]:
    """Processes whose command line names the folder's request."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(folder) in words and "specforge.train.run" in words:
            found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize("kind", ["SIGKILL", "SIGTERM"])
def test_stopped_in_the_middle_they_end_bit_equal(data, paired, tmp_path, kind):
    folder = tmp_path / "stopped"
    child = started(data, folder)
    until(lambda: len(states(folder)) >= 1 or child.poll() is not None)
    assert child.poll() is None, "it ended before it could be stopped"
    child.send_signal(getattr(signal, kind))
    status = child.wait(60)
    assert status == (143 if kind == "SIGTERM" else -signal.SIGKILL)
    until(lambda: not workers(folder), 20)
    assert not (folder / "manifest.json").exists()
    assert states(folder)[-1] != f"step-{STEPS:08d}.safetensors"
    work = next((folder / "work").iterdir())
    for left in ("error.json", "preempted"):  # as a run leaves them that was killed before it could read them
        (work / left).write_text('{"error": "stale"}')
    assert started(data, folder).wait(120) == 0
    assert same_result(folder, paired)


def test_a_loss_that_is_not_finite_is_told_by_the_parent(data, tmp_path):
    target = two_headed(data, tmp_path)
    broken = load_file(tmp_path / "model" / "model.safetensors")
    broken["model.norm.weight"].fill_(torch.nan)
    save_file(broken, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    call = arguments(data, tmp_path, init_head_from_target=False) | {"target": str(target)}
    with pytest.raises(UserError, match=r"^step 1: the term ce \(conversation c\d+\) is nan"):
        run_training(**call, processes=2)
