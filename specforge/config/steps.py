"""Settings of one step each, in pipeline order. A section reaches its rule as plain, canonical params."""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, Strict, model_validator

from specforge.config.rates import rate_tag


def _word(value: object) -> object:
    """What text stands for: inside a section, --config leaves numbers and true, false and null as text."""
    if not isinstance(value, str):
        return value
    return {"true": True, "false": False}.get(value.lower(), int(value) if re.fullmatch(r"-?\d+", value) else value)


Int = Annotated[int, Strict(), BeforeValidator(_word)]
Flag = Annotated[bool, Strict(), BeforeValidator(_word)]
Rate = Annotated[str, BeforeValidator(rate_tag)]
Share = Annotated[float, Field(ge=0, le=1)]


# What the steps say to a chat template themselves.
TEMPLATE_WORDS = frozenset({"messages", "tools", "add_generation_prompt", "tokenize", "return_dict", "chat_template"})


def _template_words(words: dict[str, Any]) -> dict[str, Any]:
    """In one order, since Snakemake compares params as they are written."""
    if taken := TEMPLATE_WORDS & words.keys():
        raise ValueError(f"{min(taken)!r} is what the steps themselves tell the template; leave it out")
    return dict(sorted(words.items()))


TemplateKwargs = Annotated[
    dict[str, Annotated[JsonValue, BeforeValidator(_word)]],
    AfterValidator(_template_words),
    Field(default_factory=dict),
]


class Section(BaseModel):
    """Options of one part. Those in PLACEMENT say how it runs, not what it makes: changing one reruns nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    PLACEMENT: ClassVar[frozenset[str]] = frozenset()

    def recipe(self) -> dict[str, Any]:
        """All that decides the result, as plain, canonical values."""
        plain = self.model_dump(mode="json", exclude=set(self.PLACEMENT))
        sections = {name: getattr(self, name) for name in plain}
        return plain | {name: value.recipe() for name, value in sections.items() if isinstance(value, Section)}

    def placement(self) -> dict[str, Any]:
        """The rest."""
        return self.model_dump(mode="json", include=set(self.PLACEMENT))


class Prepare(Section):
    """prep_dataset: what counts as a usable conversation and how many are held out."""

    test_share: Share = 0.06
    max_rejected_share: Share = 0.05
    max_turns: Annotated[Int, Field(ge=1)] = 64
    max_chars: Annotated[Int, Field(ge=1)] = 1_000_000  # of a conversation, some 250,000 tokens
    near_duplicate: Annotated[float, Field(gt=0, le=1)] = 0.7  # see data/near.py
    max_leaked_share: Share = 0.2  # of the training side: what says a held-out prompt and is left out
    image_folder: str | None = None  # where the images' paths begin; None keeps the paths and looks for no image


class TinyTarget(Section):
    """train_tiny_target: the small Qwen3 chat model made here. Sizes in tokens, units and optimizer steps."""

    vocab_size: Annotated[Int, Field(ge=300)] = 2048
    hidden_size: Annotated[Int, Field(ge=8)] = 128
    intermediate_size: Annotated[Int, Field(ge=8)] = 256
    num_layers: Annotated[Int, Field(ge=2)] = 4
    num_heads: Annotated[Int, Field(ge=1)] = 4
    num_kv_heads: Annotated[Int, Field(ge=1)] = 2
    head_dim: Annotated[Int, Field(ge=2)] = 32
    max_position_embeddings: Annotated[Int, Field(ge=64)] = 2048
    aux_layers: tuple[Int, ...] = (0, 1, 2)
    steps: Annotated[Int, Field(ge=1)] = 700
    batch_tokens: Annotated[Int, Field(ge=64)] = 1024
    lr: Annotated[float, Field(gt=0)] = 5e-3
    seed: Int = 0

    @model_validator(mode="after")
    def layers_exist(self):
        _check_aux_layers(self.aux_layers, self.num_layers)
        if self.num_heads % self.num_kv_heads:
            raise ValueError("num_heads must be a multiple of num_kv_heads")
        return self


class Regenerate(Section):
    """regenerate_dataset: how the target writes each assistant turn anew."""

    PLACEMENT = frozenset({"endpoints", "concurrency", "num_servers", "max_failed_share", "shards", "server_python"})
    engine: Literal["transformers", "sglang", "endpoint"] = "transformers"
    endpoints: tuple[str, ...] = ()
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.6
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[Int, Field(ge=1)] | None = None  # None: no cut
    num_samples: Annotated[Int, Field(ge=1)] | None = None  # the first so many conversations; None: all
    max_tokens: Annotated[Int, Field(ge=1)] = 192  # an answer, its reasoning included
    keep_truncated: Flag = True  # False: a conversation ends before a turn that max_tokens cut
    server_python: str | None = None  # the interpreter that has SGLang; None: this one
    reasoning_parser: str | None = None  # SGLang's name for how the target marks its reasoning, such as qwen3
    tool_call_parser: str | None = None  # SGLang's name for how the target writes calls of tools, such as qwen25
    return_token_ids: Flag = False  # ask endpoints for the ids they sampled, as vLLM and SGLang can; sglang always does
    batch_size: Annotated[Int, Field(ge=1)] = 64  # of engine transformers
    concurrency: Annotated[Int, Field(ge=1)] = 64  # requests under way on each server
    num_servers: Annotated[Int, Field(ge=1)] = 1
    tp_size: Annotated[Int, Field(ge=1)] = 1
    shards: Annotated[Int, Field(ge=1)] = 1  # jobs, each with servers of its own
    max_failed_share: Share = 0.1
    seed: Int = 0

    def recipe(self) -> dict[str, Any]:
        """Servers make batches of their own."""
        unused = () if self.engine == "transformers" else ("batch_size",)
        return {name: value for name, value in super().recipe().items() if name not in unused}

    @model_validator(mode="after")
    def fits(self):
        if self.tp_size * self.num_servers > 8:
            raise ValueError(
                f"tp_size * num_servers is {self.tp_size} * {self.num_servers} = "
                f"{self.tp_size * self.num_servers}, more than the 8 GPUs of a machine; lower one of them"
            )
        if (self.engine == "endpoint") != bool(self.endpoints):
            raise ValueError("endpoints lists the URLs of engine 'endpoint', and of no other engine; set both or none")
        for url in self.endpoints:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"endpoints: {url!r} is not a URL; write it like http://127.0.0.1:30000")
        for name in ("reasoning_parser", "tool_call_parser"):
            if getattr(self, name) is not None and self.engine != "sglang":
                raise ValueError(f"{name} is for the servers of engine 'sglang'; leave it out, or set that engine")
        return self


class Preprocess(Section):
    """preprocess_dataset: token ids, loss masks and the draft vocabulary."""

    draft_vocab_size: Annotated[Int, Field(ge=1)] = 768
    train_on_reasoning: Flag = True  # false: a thought before an answer is read, not learnt
    min_supervised_share: Share = 0.02
    min_coverage: Share = 0.9
    max_empty_share: Share = 0.5
    max_truncated_share: Share = 0.9
    max_refused_share: Share = 0.05
    max_prompt_mismatch_share: Share = 0.05  # of answers: the engine said another length of the prompt


class Train(Section):
    """run_training: what all runs of a sweep share. What the peers do where it differs stands in README."""

    PLACEMENT = frozenset({"save_every", "keep_states", "micro_tokens", "target_tp"})
    batch_size: Annotated[Int, Field(ge=1)] = 4  # conversations an optimizer step, over all processes
    micro_tokens: Annotated[Int, Field(ge=1)] | None = None  # tokens at once on one process; None: what memory holds
    ttt_length: Annotated[Int, Field(ge=1)] = 7
    loss_decay: Annotated[float, Field(gt=0, le=1)] = 0.8
    opd_temperature: Annotated[float, Field(gt=0)] = 1.0
    mask_shift: Annotated[Int, Field(ge=0, le=2)] = 0
    normaliser: Literal["supervised", "positions"] = "supervised"
    rollout: Literal["teacher_forced", "on_policy"] = "teacher_forced"
    rollout_share: Annotated[float, Field(gt=0, le=1)] = 0.25  # of supervised positions, where the draft goes on alone
    warmup_share: Share = 0.015
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    grad_clip: Annotated[float, Field(gt=0)] = 0.5
    aux_layers: tuple[Int, ...] | None = None
    init_head_from_target: Flag = True
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_steps: Annotated[Int, Field(ge=1)] | None = None
    save_every: Annotated[Int, Field(ge=1)] = 50
    keep_states: Annotated[Int, Field(ge=1)] = 2
    log_every: Annotated[Int, Field(ge=1)] = 10
    held_out: Annotated[Int, Field(ge=0)] = 16  # sequences, at most a tenth of all
    validate_every: Annotated[Int, Field(ge=1)] = 100
    publish: Literal["last", "best"] = "last"  # best: by held-out acceptance
    target_tp: Annotated[Int, Field(ge=1)] = 1  # processes that share one copy of the target
    seed: Int = 0

    @model_validator(mode="after")
    def three_layers(self):
        if self.aux_layers is not None:
            _check_aux_layers(self.aux_layers, None)
        if self.rollout == "on_policy" and self.target_tp > 1:
            raise ValueError("rollout on_policy needs the whole target on each process; set target_tp to 1")
        return self


class Evaluate(Section):
    """evaluate: chain speculative decoding on held-out prompts."""

    num_prompts: Annotated[Int, Field(ge=2)] = 40
    max_new_tokens: Annotated[Int, Field(ge=2)] = 48
    num_draft_tokens: Annotated[Int, Field(ge=1)] = 7
    temperatures: Annotated[tuple[Annotated[float, Field(ge=0, le=2)], ...], Field(min_length=1)] = (0.0, 1.0)
    speed_prompts: Annotated[Int, Field(ge=1)] = 8
    bootstrap_samples: Annotated[Int, Field(ge=100)] = 2000
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: Int = 0


class Wandb(Section):
    """Weights & Biases: off unless a project is named; offline without WANDB_API_KEY."""

    project: str | None = None
    entity: str | None = None


def _unique_rates(rates: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(rates)) < len(rates):
        raise ValueError(f"the rates {', '.join(rates)} name one run twice; list each rate once")
    return tuple(sorted(rates, key=float))


class Ablation(Section):
    """One row of the catalogue: weights of the loss terms and the rates to sweep, in any order."""

    lambda_ce: Annotated[float, Field(ge=0)] = 0.0
    lambda_rkl: Annotated[float, Field(ge=0)] = 0.0
    beta_hinge: Annotated[float, Field(ge=0)] = 0.0
    lambda_tv: Annotated[float, Field(ge=0)] = 0.0
    lambda_lk_alpha: Annotated[float, Field(ge=0)] = 0.0
    lambda_lk_lambda: Annotated[float, Field(ge=0)] = 0.0
    lk_eta: Annotated[float, Field(gt=0)] = 3.0
    lrs: Annotated[tuple[Rate, ...], Field(min_length=1), AfterValidator(_unique_rates)]

    @model_validator(mode="after")
    def trains_something(self):
        if not any(value for name, value in self.weights().items() if name != "lk_eta"):
            raise ValueError("all weights are 0, so nothing would be trained; set lambda_ce, lambda_rkl or another")
        return self

    def weights(self) -> dict[str, float]:
        return self.model_dump(exclude={"lrs"})

    def middle_rate(self) -> str:
        return self.lrs[(len(self.lrs) - 1) // 2]


def _check_aux_layers(layers: tuple[int, ...], num_layers: int | None) -> None:
    if len(layers) != 3 or list(layers) != sorted(set(layers)) or layers[0] < 0:
        raise ValueError(f"aux_layers {list(layers)} must be three different layer ids in ascending order")
    if num_layers is not None and layers[-1] > num_layers - 2:
        raise ValueError(f"aux_layers {list(layers)} must stay below the last of {num_layers} layers")
