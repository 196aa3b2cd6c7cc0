"""Hours and dollars of a plan, from earlier runs where there are any."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import yaml
from workspace import REPOSITORY

from specforge.cloud import ledger
from specforge.cloud.job import params_digest
from specforge.cloud.plan import _is_kind, check_budget, plan, remember, table, total
from specforge.config import Config, load_config
from specforge.config.cloud import Gpus
from specforge.config.paths import Paths
from specforge.errors import UserError
from specforge.files import write_json


@dataclass
class Job:
    """What the plan reads of a Snakemake job."""

    rule: str
    wildcards: dict[str, str] = field(default_factory=dict)
    params: dict[str, object] = field(default_factory=dict)
    output: list[str] = field(default_factory=list)


TRAINING = Job(
    "run_training", {"ablation": "mixed", "lr": "1e-4"}, {"code": "c"}, ["checkpoints/x/mixed/lr1e-4/manifest.json"]
)


def configured(**options: object) -> Config:
    raw = yaml.safe_load((REPOSITORY / "config.yaml").read_text())
    return load_config(raw | {"backend": "modal", "single_gpu": False} | options)


@pytest.fixture(autouse=True)
def empty_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


def test_without_history_the_configuration_tells_and_the_price_is_of_all_gpus():
    cfg = configured(gpu="H200:4", modal={"hours": {"run_training": 5}, "prices": {"H200": 4.0}})
    (line,) = plan(cfg, [TRAINING])
    assert (line.name, line.gpus, line.hours, line.basis) == (
        "run_training mixed lr1e-4", Gpus("H200", 4), 5.0, "modal.hours",
    )  # fmt: skip
    assert line.cost == pytest.approx(80.0)


def test_jobs_that_run_here_are_not_in_it_and_cpu_jobs_cost_nothing():
    lines = plan(configured(), [Job("report"), Job("all"), Job("prep_dataset")])
    assert [(line.name, line.cost) for line in lines] == [("prep_dataset", 0.0)]


def test_earlier_runs_on_the_same_target_and_gpu_tell_the_hours():
    cfg = configured(num_epochs=3)
    paths = Paths(cfg)
    write_json(Path(paths.target), {"sha256": "t"})
    write_json(Path(paths.cache["summary"]), {"tokens": 7_200_000})

    def run(name: str, target: str, device: str, seconds: float) -> None:
        manifest = {"inputs": {"target": target}, "device": device, "processes": 8, "tokens": 8_000_000}
        write_json(Path(f"checkpoints/a/{name}/lr1/manifest.json"), manifest | {"seconds": seconds})

    run("same", "t", "NVIDIA H100 80GB HBM3", 1000)  # 1,000 tokens a second and GPU
    run("other-target", "u", "NVIDIA H100 80GB HBM3", 10)
    run("other-gpu", "t", "NVIDIA B200", 10)
    (line,) = plan(cfg, [TRAINING])
    assert line.basis == "earlier runs' tokens/s"
    assert line.hours == pytest.approx(3 * 7_200_000 / 8000 / 3600 + 0.05)


def test_earlier_calls_tell_the_hours_of_the_other_rules():
    for seconds in (1800, 3600, 9000):
        remember("evaluate", "H100:1", seconds)
    remember("evaluate", "T4:1", 1)
    (line,) = plan(configured(), [Job("evaluate", {"ablation": "mixed", "lr": "1e-4"})])
    assert line.basis == "3 earlier"
    assert line.hours == pytest.approx(1.05)


def test_a_call_that_runs_already_costs_nothing_more_but_one_that_is_over_or_of_other_settings_does():
    facts = {"rule": "run_training", "experiment": "x", "outputs": TRAINING.output, "log": "l", "gpus": "H100:8"}
    ledger.note("w", "fc-1", params=params_digest({"code": "c", "place": 1}), **facts)
    (line,) = plan(configured(), [TRAINING], live=lambda call: call == "fc-1")
    assert (line.cost, line.basis) == (0.0, "call fc-1 runs already")
    (line,) = plan(configured(), [TRAINING], live=lambda call: False)
    assert line.cost > 0
    (line,) = plan(configured(), [replace(TRAINING, params={"code": "d"})], live=lambda call: True)
    assert line.cost > 0


@pytest.mark.parametrize(
    ("kind", "device", "same"),
    [
        ("H100!", "NVIDIA H100 80GB HBM3", True),
        ("A100-80GB", "NVIDIA A100-SXM4-80GB", True),
        ("A10", "NVIDIA A100-SXM4-80GB", False),
        ("L4", "NVIDIA L40S", False),
        ("RTX-PRO-6000", "NVIDIA RTX PRO 6000 Blackwell Server Edition", True),
    ],
)
def test_rates_are_of_the_same_gpu_type(kind: str, device: str, same: bool):
    assert _is_kind(kind, device) is same


def test_the_total_and_the_budget():
    cfg = configured(budget=100, modal={"hours": {"run_training": 2}, "prices": {"H100": 4}})
    lines = plan(cfg, [TRAINING])
    assert total(lines) == 64
    check_budget(cfg, lines)
    assert "1 jobs, 16.0 GPU hours, 64.00 dollars" in table(lines)
    with pytest.raises(UserError, match=r"costs 128.00 dollars, more than budget, 100.00; nothing was started"):
        check_budget(cfg, plan(cfg, [TRAINING, TRAINING]))


def test_a_gpu_without_a_price_is_told():
    with pytest.raises(UserError, match=r"modal\.prices has no price for X100"):
        plan(configured(gpu="X100:8"), [TRAINING])
    with pytest.raises(UserError, match=r"no price in modal\.prices, so budget cannot be kept"):
        configured(gpu="X100:8", budget=5)
