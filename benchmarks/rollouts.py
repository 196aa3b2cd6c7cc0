"""On-policy rollouts against the teacher-forced default, on a finished default experiment.

    snakemake --cores 2 all && python benchmarks/rollouts.py [seeds]

Trains each ablation below with both, for each seed, two at a time, and evaluates them on the same held-out prompts; the
table has accept lengths, their difference with a 95 % interval (bootstrap over prompts, paired, seeds pooled) and what
a training step costs. Work goes to results/rollouts/ and is continued when interrupted.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np

DATA, TARGET = Path("datasets/tiny-synthetic"), "checkpoints/targets/tiny-synthetic/target.json"
WORK = Path("results/rollouts")
ABLATIONS = {
    "rkl-only": {"lambda_rkl": 1.0},
    "mixed": {"lambda_ce": 0.5, "lambda_rkl": 0.5},
    "full-opd": {"lambda_ce": 0.4, "lambda_rkl": 0.5, "beta_hinge": 0.1},
}
LR, EPOCHS = "6e-3", 2
ROLLOUTS = ("teacher_forced", "on_policy")


def one(ablation: str, rollout: str, seed: int) -> None:
    """Trains and evaluates one draft, in this process."""
    from specforge.config.steps import Evaluate, Train
    from specforge.data.template import Chat
    from specforge.fingerprint import code_version
    from specforge.steps.evaluate import evaluate
    from specforge.steps.run_training import run_training

    folder = WORK / ablation / rollout / str(seed)
    settings = Train(rollout=rollout, seed=seed)
    run_training(
        target=TARGET, cache=str(DATA / "synthetic_cache.arrow"), vocab=str(DATA / "synthetic_vocab.safetensors"),
        cache_summary=str(DATA / "synthetic_cache.json"), ablation=ablation, lr=LR, weights=ABLATIONS[ablation],
        settings=settings.recipe(), placement=settings.placement(), layers=[0, 1, 2], epochs=EPOCHS,
        wandb={"project": None}, code=code_version("run_training"), draft=str(folder / "draft/model.safetensors"),
        metrics=str(folder / "metrics.jsonl"), manifest=str(folder / "manifest.json"),
        card=str(folder / "draft/README.md"), regenerated=True, work=str(folder / ".work"), threads=1,
    )  # fmt: skip
    evaluate(
        target=TARGET, draft=str(folder / "draft/model.safetensors"), prompts="datasets/synthetic_test.jsonl",
        settings=Evaluate().recipe(), chat=Chat().recipe(), template=None, ablation=ablation, lr=LR,
        code=code_version("evaluate"),
        output=str(folder / "eval.json"), work=str(folder / ".eval"), threads=1,
    )  # fmt: skip


def prompts_of(ablation: str, rollout: str, seeds: int, temperature: str) -> np.ndarray:
    """Tokens and rounds of each prompt, summed over seeds: [prompts, 2]."""
    total: dict[str, np.ndarray] = {}
    for seed in range(seeds):
        report = json.loads((WORK / ablation / rollout / str(seed) / "eval.json").read_text())
        for prompt in report["temperatures"][temperature]["prompts"]:
            total[prompt["id"]] = total.get(prompt["id"], 0) + np.array([prompt["tokens"], prompt["rounds"]])
    return np.stack([total[name] for name in sorted(total)])


def difference(forced: np.ndarray, rolled: np.ndarray) -> tuple[float, float, float]:
    """Accept length of the second minus the first's, with a paired 95 % interval over prompts."""
    draws = np.random.default_rng(0).integers(len(forced), size=(4000, len(forced)))
    forced_draws, rolled_draws = forced[draws].sum(1), rolled[draws].sum(1)
    spread = rolled_draws[:, 0] / rolled_draws[:, 1] - forced_draws[:, 0] / forced_draws[:, 1]
    mean = rolled[:, 0].sum() / rolled[:, 1].sum() - forced[:, 0].sum() / forced[:, 1].sum()
    return mean, *np.percentile(spread, [2.5, 97.5])


def seconds(ablation: str, rollout: str, seeds: int) -> float:
    folders = [WORK / ablation / rollout / str(seed) for seed in range(seeds)]
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in folders]
    return float(np.mean([manifest["seconds"] / manifest["steps"] for manifest in manifests]))


def table(seeds: int) -> str:
    lines = [
        "| ablation | T | teacher-forced | on-policy | difference, 95 % | step time, ratio |",
        "|---|---|---|---|---|---|",
    ]
    for ablation, temperature in product(ABLATIONS, ("0", "1")):
        forced, rolled = (prompts_of(ablation, rollout, seeds, temperature) for rollout in ROLLOUTS)
        lengths = [x[:, 0].sum() / x[:, 1].sum() for x in (forced, rolled)]
        mean, low, high = difference(forced, rolled)
        cost = seconds(ablation, "on_policy", seeds) / seconds(ablation, "teacher_forced", seeds)
        lines.append(
            f"| {ablation} | {temperature} | {lengths[0]:.2f} | {lengths[1]:.2f} | "
            f"{mean:+.2f} ({low:+.2f} to {high:+.2f}) | {cost:.2f} |"
        )
    return "\n".join(lines)


def main(seeds: int = 3) -> None:
    runs = [[ablation, rollout, str(seed)] for seed, ablation, rollout in product(range(seeds), ABLATIONS, ROLLOUTS)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}

    def start(run: list[str]) -> None:
        subprocess.run([sys.executable, __file__, *run], env=env, check=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(start, runs))
    sys.stdout.write(table(seeds) + "\n")


if __name__ == "__main__":
    if len(sys.argv) == 4:
        one(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    else:
        main(*map(int, sys.argv[1:]))
