"""The whole of config.yaml, typed. Options of the sweep are flat keys, so that --config works like a command line."""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from specforge.config.cloud import Gpus, GpuSpec, Modal, Sync
from specforge.config.rates import rate_tag
from specforge.config.steps import (
    Ablation,
    Evaluate,
    Flag,
    Int,
    Prepare,
    Preprocess,
    Regenerate,
    Section,
    TemplateKwargs,
    TinyTarget,
    Train,
    Wandb,
)

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
TINY = "tiny"
TAKEN = ("targets", "results")  # folders of the checkpoints volume that belong to no experiment


def _comma_list(value: object) -> object:
    """`a,b` as --config gives it, or a YAML list."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def _pairs(value: object) -> object:
    """`baseline:1e-4,full-opd:5e-5` to ((ablation, rate tag), ...)."""
    pairs = []
    for part in _comma_list(value) or []:
        ablation, colon, rate = str(part).partition(":")
        if not colon:
            raise ValueError(f"{part!r} is not ablation:rate, such as baseline:1e-4")
        pairs.append((ablation.strip(), rate_tag(rate.strip())))
    return tuple(dict.fromkeys(pairs)) or None


def _revision(value: object) -> object:
    """A commit of digits only reaches us as a number."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def slug(text: str) -> str:
    """A file name for a model or data set: the last part of a path or hub id, safe characters only."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text.rstrip("/").rsplit("/", 1)[-1]).strip("-.")
    return name or "unnamed"


class Config(Section):
    PLACEMENT = frozenset({"backend", "single_gpu", "skip_download", "wandb", "gpu", "budget", "sync", "modal"})
    target_model: Annotated[str, Field(min_length=1)] = TINY
    dataset: Annotated[str, Field(min_length=1)] = "synthetic"
    dataset_revision: Annotated[str, BeforeValidator(_revision)] | None = None
    sample_size: Annotated[Int, Field(ge=1)] | None = None
    split_eval: Flag = True
    ablations: Annotated[tuple[str, ...], BeforeValidator(_comma_list)] = ("all",)
    lr_sweep: Flag = True
    ablation_lrs: Annotated[tuple[tuple[str, str], ...] | None, BeforeValidator(_pairs)] = None
    num_epochs: Annotated[Int, Field(ge=1)] = 10
    max_length: Annotated[Int, Field(ge=16)] = 2048
    chat_template: Annotated[str, Field(min_length=1)] | None = None
    chat_template_kwargs: TemplateKwargs
    output_prefix: Annotated[str, Field(pattern=f"^{NAME}$")] | None = None
    skip_download: Flag = False
    single_gpu: Flag = False
    backend: Literal["local", "modal"] = "local"
    gpu: GpuSpec = "H100:8"
    budget: Annotated[float, Field(ge=0)] | None = None  # dollars a run
    sync: Sync = Sync()
    seed: Int = 0
    ablation_catalogue: Annotated[dict[Annotated[str, Field(pattern=f"^{NAME}$")], Ablation], Field(min_length=1)]
    prepare: Prepare = Prepare()
    tiny_target: TinyTarget = TinyTarget()
    regenerate: Annotated[Regenerate | Literal[False], BeforeValidator(lambda v: {} if v is True else v)] = Regenerate()
    preprocess: Preprocess = Preprocess()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    wandb: Wandb = Wandb()
    modal: Modal = Modal()

    @model_validator(mode="after")
    def ablations_are_known(self):
        named = [*self.ablations, *(ablation for ablation, _ in self.ablation_lrs or ())]
        unknown = [name for name in named if name != "all" and name not in self.ablation_catalogue]
        if unknown:
            known = ", ".join(self.ablation_catalogue)
            raise ValueError(
                f"ablation {unknown[0]!r} is not in ablation_catalogue ({known}); add it there or correct it"
            )
        if not self.ablations:
            raise ValueError("ablations is empty; name some or write all")
        return self

    @model_validator(mode="after")
    def names_are_free(self):
        if self.prefix in TAKEN:
            raise ValueError(f"output_prefix {self.prefix!r} is the name of a folder that all experiments share")
        if self.target_name.startswith(f"{TINY}-") and self.target_model != TINY:
            raise ValueError(
                f"target_model {self.target_model!r} would lie where the tiny target does; give its folder another name"
            )
        return self

    @model_validator(mode="after")
    def endpoints_can_be_reached(self):
        if self.backend == "modal" and self.regenerate and self.regenerate.engine == "endpoint":
            raise ValueError(
                "regenerate.engine 'endpoint' asks servers from this machine, with its key; make the regenerated data "
                "with backend local (--until regenerate_dataset), then choose modal"
            )
        return self

    @model_validator(mode="after")
    def budget_can_be_kept(self):
        if self.budget is not None and self.backend == "modal":
            try:
                self.modal.price(Gpus.parse(self.gpu))
            except KeyError:
                raise ValueError(f"gpu {self.gpu!r} has no price in modal.prices, so budget cannot be kept") from None
        return self

    @property
    def shards(self) -> int:
        """Jobs that share the regeneration."""
        return self.regenerate.shards if self.regenerate else 1

    def gpus(self, rule: str) -> Gpus | None:
        """GPUs of one job of a rule. The tiny target needs none on this machine; on Modal its runs have them."""
        kind, count = Gpus.parse(self.gpu)
        regenerate = self.regenerate
        needed = {"run_training": 1 if self.single_gpu else count, "evaluate": 1}
        if regenerate and regenerate.engine != "endpoint":
            saying = "regenerate_dataset" if self.shards == 1 else "regenerate_shard"  # then the former only joins
            needed[saying] = regenerate.num_servers * regenerate.tp_size if regenerate.engine == "sglang" else 1
        if rule not in needed or (self.backend == "local" and self.target_model == TINY):
            return None
        return Gpus(kind, needed[rule])

    def memory_mb(self, rule: str, tiny: int) -> int:
        """Memory of this machine that a job claims: `tiny` for the tiny target, else what loads billions of weights."""
        gpus = self.gpus(rule)
        return tiny if self.target_model == TINY else max(8000, 32000 * gpus.count if gpus else 0)

    def function(self, rule: str) -> str:
        """The app's function that does a rule's jobs."""
        if rule == "run_training" and self.single_gpu:
            return "run_training_single_gpu"
        serves = self.regenerate and self.regenerate.engine == "sglang" and self.gpus(rule)
        return f"{rule}_batched" if rule.startswith("regenerate_") and not serves else rule

    def place(self, rule: str) -> dict[str, Any]:
        """Where jobs of a rule run, as plain values; `gpus` is a number here and Modal's words there."""
        gpus = self.gpus(rule)
        if self.backend == "local":
            return {"backend": "local", "function": self.function(rule), "gpus": gpus.count if gpus else 0}
        large = gpus and self.target_model != TINY  # each process loads the target on its own
        return {
            "backend": "modal",
            "function": self.function(rule),
            "gpus": str(gpus) if gpus else "",
            "cpu": 2.0 * gpus.count if large else None,
            "memory": self.memory_mb(rule, 0) if large else None,
            "experiment": self.prefix,
            "sync": self.sync.recipe(),
            **self.modal.model_dump(mode="json", include={"app", "environment", "timeout_hours", "retries"}),
        }

    @property
    def dataset_name(self) -> str:
        name = slug(self.dataset)
        return re.sub(r"\.(jsonl?|ndjson|parquet)$", "", name)

    @property
    def target_name(self) -> str:
        return f"{TINY}-{self.dataset_name}" if self.target_model == TINY else slug(self.target_model)

    @property
    def prefix(self) -> str:
        """Folder of this experiment under datasets/, checkpoints/ and results/."""
        if self.output_prefix:
            return self.output_prefix
        return self.target_name if self.target_model == TINY else f"{self.target_name}-{self.dataset_name}"

    @property
    def aux_layers(self) -> tuple[int, ...] | None:
        """Target layers whose outputs the draft reads; None leaves it to the rule for the target's depth."""
        if self.train.aux_layers is None and self.target_model == TINY:
            return self.tiny_target.aux_layers
        return self.train.aux_layers

    def runs(self) -> list[tuple[str, str]]:
        """(ablation, rate tag) of each training, in catalogue order, ascending rates."""
        if self.ablation_lrs:
            return list(self.ablation_lrs)
        chosen = [n for n in self.ablation_catalogue if "all" in self.ablations or n in self.ablations]
        return [
            (name, rate)
            for name in chosen
            for rate in (
                self.ablation_catalogue[name].lrs if self.lr_sweep else [self.ablation_catalogue[name].middle_rate()]
            )
        ]
