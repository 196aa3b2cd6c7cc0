"""Train one draft: one ablation at one learning rate."""

from pathlib import Path

from specforge.card.card import model_card
from specforge.files import digest, exclusive, publish, read_json, read_jsonl, sha256_file, write_json, write_text
from specforge.provenance import commit, versions
from specforge.target.model import TargetFile
from specforge.train.run import train_on


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
    card: str,
    regenerated: bool,
    work: str,
    threads: int,
    processes: int = 1,
) -> dict:
    """Trains, then publishes the checkpoint beside `draft` (model.safetensors), its metrics, card and manifest.

    Progress lives in `work`, in a folder named by all that decides the result, so a killed run continues and a
    changed recipe starts anew. `processes` train together, a GPU each; how many makes no difference to the result
    but rounding.
    """
    source, facts = TargetFile.read(target), read_json(Path(cache_summary))
    inputs = {"target": source.sha256, **facts["sha256"]}
    recipe = {"weights": weights, "lr": lr, "settings": settings, "layers": layers, "epochs": epochs, "inputs": inputs}
    with exclusive(Path(work) / digest(recipe, code)) as folder:
        request = {
            "folder": str(folder), "target": target, "cache": cache, "vocab": vocab, "recipe": recipe,
            "placement": placement, "label": f"{ablation} lr{lr}", "wandb": wandb, "threads": threads,
        }  # fmt: skip
        train_on(processes, request)
        for name in ("config.json", "model.safetensors"):
            publish(folder / "draft" / name, Path(draft).parent / name)
        publish(folder / "metrics.jsonl", Path(metrics))
        trained = read_json(folder / "facts.json")
    receipt = {
        "run": {"ablation": ablation, "lr": lr, "weights": weights},
        "settings": settings | {"epochs": epochs, "aux_layers": trained.pop("aux_layers")},
        "inputs": inputs,
        "draft_sha256": sha256_file(Path(draft)),
        "code": code,
        "versions": versions(),
        "commit": commit(),
        **trained,
    }
    config = read_json(Path(draft).parent / "config.json")
    final = ([{}, *read_jsonl(Path(metrics))])[-1]
    text = model_card(
        receipt, config, facts, source.model,
        revision=source.revision, folder=str(Path(draft).parent), final=final, regenerated=regenerated,
    )  # fmt: skip
    write_text(Path(card), text)
    write_json(Path(manifest), receipt)
    return receipt
