"""Every path of an experiment, named once: rules, scripts and `modal run` mean the same files."""

from pathlib import Path

from specforge.config.schema import TINY, Config

TINY_FILES = (
    "model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "chat_template.jinja",
)  # fmt: skip
MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")


class Paths:
    """Relative to the working directory here, and to the folder of the volumes' mounts in a container."""

    def __init__(self, cfg: Config):
        data, prefix = f"datasets/{cfg.dataset_name}", f"datasets/{cfg.prefix}/{cfg.dataset_name}"
        self.prepared = {
            "train": f"{data}_train.jsonl",
            "rejected": f"{data}_rejected.jsonl",
            "summary": f"{data}_prep.json",
        }
        self.test = f"{data}_test.jsonl"
        self.target = f"checkpoints/targets/{cfg.target_name}/target.json"
        self.target_files = (
            list(tiny_target(cfg.target_name).values()) if cfg.target_model == TINY else local_model(cfg.target_model)
        )
        self.regenerated = {
            "data": f"{prefix}_regenerated.jsonl",
            "errors": f"{prefix}_errors.jsonl",
            "summary": f"{prefix}_regenerated.json",
        }
        folder = f"datasets/{cfg.prefix}/.shards/{cfg.dataset_name}"
        self.shard = f"{folder}_{{shard}}-of-{cfg.shards}.json"
        self.shards = [self.shard.format(shard=n) for n in range(cfg.shards) if cfg.shards > 1]
        self.regeneration_work = f"datasets/{cfg.prefix}/.work"
        self.cache = {
            "cache": f"{prefix}_cache.arrow",
            "vocab": f"{prefix}_vocab.safetensors",
            "summary": f"{prefix}_cache.json",
        }
        self.run = f"checkpoints/{cfg.prefix}/{{ablation}}/lr{{lr}}"
        self.result = f"results/{cfg.prefix}/{{ablation}}/lr{{lr}}"
        self.report = f"results/{cfg.prefix}"


def tiny_target(name: str) -> dict[str, str]:
    """The tiny target's files, by the name before their ending."""
    return {file.split(".")[0]: f"checkpoints/targets/{name}/{file}" for file in TINY_FILES}


def local_model(model: str) -> list[str]:
    """The files of a model that is a folder here; none for a hub model, which its revision names."""
    folder = Path(model)
    if not folder.is_dir():
        return []
    return sorted({str(path) for pattern in MODEL_FILES for path in folder.glob(pattern)})
