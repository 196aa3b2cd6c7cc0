"""The whole of config.yaml, typed. Options of the sweep are flat keys, so that --config works like a command line."""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

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
    TinyTarget,
    Train,
    Wandb,
)

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
TINY = "tiny"


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


def slug(text: str) -> str:
    """A file name for a model or data set: the last part of a path or hub id, safe characters only."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text.rstrip("/").rsplit("/", 1)[-1]).strip("-.")
    return name or "unnamed"


class Config(Section):
    PLACEMENT = frozenset({"backend", "single_gpu", "skip_download", "wandb"})
    target_model: Annotated[str, Field(min_length=1)] = TINY
    dataset: Annotated[str, Field(min_length=1)] = "synthetic"
    sample_size: Annotated[Int, Field(ge=1)] | None = None
    split_eval: Flag = True
    ablations: Annotated[tuple[str, ...], BeforeValidator(_comma_list)] = ("all",)
    lr_sweep: Flag = True
    ablation_lrs: Annotated[tuple[tuple[str, str], ...] | None, BeforeValidator(_pairs)] = None
    num_epochs: Annotated[Int, Field(ge=1)] = 10
    max_length: Annotated[Int, Field(ge=16)] = 2048
    chat_template: Annotated[str, Field(min_length=1)] | None = None
    chat_template_kwargs: Annotated[dict[str, Any], Field(default_factory=dict)]
    output_prefix: Annotated[str, Field(pattern=f"^{NAME}$")] | None = None
    skip_download: Flag = False
    single_gpu: Flag = False
    backend: Literal["local"] = "local"
    seed: Int = 0
    ablation_catalogue: Annotated[dict[Annotated[str, Field(pattern=f"^{NAME}$")], Ablation], Field(min_length=1)]
    prepare: Prepare = Prepare()
    tiny_target: TinyTarget = TinyTarget()
    regenerate: Annotated[Regenerate | Literal[False], BeforeValidator(lambda v: {} if v is True else v)] = Regenerate()
    preprocess: Preprocess = Preprocess()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    wandb: Wandb = Wandb()

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

    @property
    def dataset_name(self) -> str:
        name = slug(self.dataset)
        return re.sub(r"\.(jsonl?|parquet)$", "", name)

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
