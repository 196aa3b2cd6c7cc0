"""The README.md of a checkpoint folder: what the draft is, how to serve it, what made it.

Only what is named here reaches the card, so neither an unknown key nor the data's text can be published by accident.
"""

import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from specforge.config.steps import Train
from specforge.pages import template
from specforge.provenance import PACKAGES

HERE = Path(__file__).parent
TAGS = ["eagle3", "speculative-decoding", "on-policy-distillation", "sglang", "vllm"]
TERMS = {
    "lambda_ce": "cross-entropy",
    "lambda_rkl": "reverse KL",
    "beta_hinge": "hinge",
    "lambda_tv": "total variation",
    "lambda_lk_alpha": "LK alpha",
    "lambda_lk_lambda": "LK lambda",
    "lk_eta": "eta of LK lambda",
}
METRICS = {
    "loss": "loss, all unrolled steps",
    "ce": "cross-entropy",
    "rkl": "reverse KL",
    "hinge": "hinge",
    "lk": "negative log acceptance",
    "accept_sampled": "acceptance of sampled drafting",
    "accept_greedy": "greedy token is the target's",
    "accept_top1": "target's probability of the greedy token",
}
DATA = {
    "conversations": "conversations",
    "sequences": "sequences",
    "tokens": "tokens",
    "supervised_tokens": "supervised tokens",
    "truncated": "sequences truncated",
}
DIGESTS = {"target": "target", "cache": "token cache", "vocab": "vocabulary maps"}


def model_card(
    manifest: dict[str, Any],
    config: dict[str, Any],
    cache_summary: dict[str, Any],
    target: str,
    *,
    revision: str | None,
    folder: str,
    final: dict[str, Any],
    regenerated: bool,
) -> str:
    """Markdown with YAML front matter; equal inputs give equal bytes.

    Args:
        manifest: the training's receipt, as run_training writes it; extra keys are passed over.
        config: the checkpoint's config.json.
        cache_summary: the report of preprocess_dataset.
        target: hub name or path of the target, as a server is to be given it.
        revision: the target's commit on the hub, None for a local one.
        folder: path or hub name of the checkpoint, likewise.
        final: the last line of metrics.jsonl, or {}.
        regenerated: whether the assistant turns are the target's own.
    """
    settings = manifest["settings"]
    filters = {"count": _count, "figure": _figure, "cell": _cell, "percent": _percent}
    return template(HERE / "card.md.jinja", filters).render(
        front_matter=_front_matter(target, revision),
        target=target,
        revision=revision,
        config=config,
        run=manifest["run"],
        settings=settings,
        manifest=manifest,
        sglang=_sglang(target, folder, settings["ttt_length"]),
        vllm=_vllm(target, folder, settings["ttt_length"]),
        weights=_named(TERMS, manifest["run"]["weights"]),
        data=_named(DATA, cache_summary),
        cache=cache_summary,
        regenerated=regenerated,
        layers=config["eagle_config"]["eagle_aux_hidden_state_layer_ids"],
        hyperparameters={"lr": manifest["run"]["lr"]} | _present(("epochs", *Train.model_fields), settings),
        metrics=_named(METRICS, final),
        final_step=final.get("step"),
        by_step=final.get("accept_by_step") or [],
        digests=_named(DIGESTS, manifest["inputs"]) | {"draft": manifest["draft_sha256"]},
        versions=_present(("python", *PACKAGES), manifest["versions"]),
    )


def _front_matter(target: str, revision: str | None) -> str:
    """The hub refuses a base model that is not one of its names, so a local target is left out."""
    named = {"base_model": target} if revision else {}
    facts = named | {"library_name": "sglang", "pipeline_tag": "text-generation", "tags": TAGS}
    return yaml.safe_dump(facts, sort_keys=False)


def _sglang(target: str, folder: str, steps: int) -> list[str]:
    """The command's lines. Along a chain SGLang verifies the drafted tokens and the one before them."""
    return [
        f"python -m sglang.launch_server --model-path {shlex.quote(target)}",
        "--speculative-algorithm EAGLE3",
        f"--speculative-draft-model-path {shlex.quote(folder)}",
        f"--speculative-num-steps {steps}",
        "--speculative-eagle-topk 1",
        f"--speculative-num-draft-tokens {steps + 1}",
    ]


def _vllm(target: str, folder: str, steps: int) -> list[str]:
    speculative = json.dumps({"method": "eagle3", "model": folder, "num_speculative_tokens": steps}, ensure_ascii=False)
    return [f"vllm serve {shlex.quote(target)}", f"--speculative-config {shlex.quote(speculative)}"]


def _named(labels: dict[str, str], values: dict[str, Any]) -> dict[str, Any]:
    """The values that have a label, in the labels' order."""
    return {label: values[name] for name, label in labels.items() if name in values}


def _present(names: Iterable[str], values: dict[str, Any]) -> dict[str, Any]:
    """The values of these names, in their order."""
    return {name: values[name] for name in names if name in values}


def _count(value: int) -> str:
    return f"{value:,}"


def _figure(value: float) -> str:
    return f"{value:.4g}"


def _percent(share: float) -> str:
    return f"{share:.2%}"


def _cell(value: Any) -> str:
    """A value as code within a table."""
    plain = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"`{plain}`".replace("|", "\\|").replace("\n", " ")
