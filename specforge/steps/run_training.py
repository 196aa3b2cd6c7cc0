"""Train one draft: one ablation at one learning rate."""

from pathlib import Path

from specforge.card.card import model_card
from specforge.files import digest, exclusive, publish, read_json, read_jsonl, sha256_file, write_json, write_text
from specforge.provenance import commit, versions
from specforge.target.file import TargetFile
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
    run = {"ablation": ablation, "lr": lr, "weights": weights}
    receipt = _receipt(run, settings | {"epochs": epochs}, inputs, trained, Path(draft)) | {"code": code}
    described = {"revision": source.revision, "folder": str(Path(draft).parent), "regenerated": regenerated}
    write_text(Path(card), _card(receipt, facts, source.model, Path(metrics), described))
    write_json(Path(manifest), receipt)
    return receipt


def _receipt(run: dict, settings: dict, inputs: dict, trained: dict, draft: Path) -> dict:
    """The manifest: what was asked, what it was made from, what came out."""
    return {
        "run": run,
        "settings": settings | {"aux_layers": trained.pop("aux_layers")},
        "inputs": inputs,
        "draft_sha256": sha256_file(draft),
        "versions": versions(),
        "commit": commit(),
        **trained,
    }


def _card(receipt: dict, facts: dict, target: str, metrics: Path, described: dict) -> str:
    config = read_json(Path(described["folder"]) / "config.json")
    final = ([{}, *(line for line in read_jsonl(metrics) if "ce" in line)])[-1]
    return model_card(receipt, config, facts, target, final=final, **described)
