"""Train one draft: one ablation at one learning rate."""

from pathlib import Path

import torch

from specforge.config.steps import Train
from specforge.files import digest, exclusive, publish, read_json, sha256_file, write_json
from specforge.model.draft import Draft
from specforge.model.files import draft_config, save_draft
from specforge.model.vocab import load_vocab
from specforge.provenance import commit, versions
from specforge.target.model import Target, TargetFile, aux_layers, default_device
from specforge.train.batches import read_cache
from specforge.train.loop import Trainer
from specforge.train.losses import LossWeights
from specforge.train.resume import ResumeFolder
from specforge.train.tracking import wandb_report
from specforge.train.unroll import Objective


def run_training(
    *,
    target: str,
    cache: str,
    vocab: str,
    cache_summary: str,
    ablation: str,
    lr: str,
    weights: dict,
    settings: dict,
    placement: dict,
    layers: list[int] | None,
    epochs: int,
    wandb: dict,
    code: str,
    draft: str,
    metrics: str,
    manifest: str,
    work: str,
    threads: int,
) -> dict:
    """Trains, then publishes the checkpoint beside `draft` (model.safetensors), its metrics and its manifest.

    Progress lives in `work`, in a folder named by all that decides the result, so a killed run continues and a
    changed recipe starts anew.
    """
    torch.set_num_threads(threads)
    options, source = Train(**settings, **placement), TargetFile.read(target)
    inputs = {"target": source.sha256, **read_json(Path(cache_summary))["sha256"]}
    recipe = {"weights": weights, "lr": lr, "settings": settings, "layers": layers, "epochs": epochs}
    with exclusive(Path(work) / digest(recipe, inputs, code)) as folder:
        trainer = _trainer(source, Path(cache), Path(vocab), LossWeights(**weights), options, layers)
        label = f"{ablation} lr{lr}"
        with wandb_report(wandb, label, recipe, folder) as report:
            steps = trainer.train(float(lr), epochs, ResumeFolder(folder), label, report)
        save_draft(folder / "draft", trainer.draft, getattr(torch, options.dtype))
        for name in ("config.json", "model.safetensors"):
            publish(folder / "draft" / name, Path(draft).parent / name)
        publish(folder / "metrics.jsonl", Path(metrics))
    receipt = {
        "run": {"ablation": ablation, "lr": lr, "weights": weights},
        "settings": settings | {"epochs": epochs, "aux_layers": list(trainer.target.layers)},
        "inputs": inputs,
        "draft_sha256": sha256_file(Path(draft)),
        "steps": steps,
        "code": code,
        **_facts(trainer),
    }
    write_json(Path(manifest), receipt)
    return receipt


def _facts(trainer: Trainer) -> dict:
    return {
        "draft_parameters": sum(p.numel() for p in trainer.draft.parameters()),
        "tokens": trainer.tokens,
        "seconds": round(trainer.seconds, 1),
        "versions": versions(),
        "commit": commit(),
    }


def _trainer(
    source: TargetFile,
    cache: Path,
    vocab: Path,
    weights: LossWeights,
    options: Train,
    layers: list[int] | None,
) -> Trainer:
    device = default_device()
    dtype = getattr(torch, options.dtype)
    config = source.config().get_text_config()
    ids = aux_layers(config.num_hidden_layers, tuple(layers) if layers else None)
    d2t, t2d = load_vocab(vocab, config.vocab_size)
    target = Target(source.load(dtype, device), ids)
    draft = Draft(draft_config(config, len(d2t), ids), d2t, t2d)
    draft.init_weights(torch.Generator().manual_seed(options.seed))
    if options.init_head_from_target:
        _copy_head(draft, target)
    draft.to(device=device, dtype=dtype)
    objective = Objective(weights, options.ttt_length, options.loss_decay, options.opd_temperature)
    return Trainer(draft, target, read_cache(cache), objective, options)


@torch.no_grad()
def _copy_head(draft: Draft, target: Target) -> None:
    """Starts head and norm from the target's: the draft need not learn again what each token's row is."""
    draft.lm_head.weight.copy_(target.head.weight[draft.target_ids.to(target.head.weight.device)])
    draft.norm.weight.copy_(target.decoder.norm.weight)
