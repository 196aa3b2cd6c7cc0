"""target.json: which target exactly. Reading it takes no torch, which a client of servers does without."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specforge.files import read_json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TargetFile:
    """target.json: where the weights are and what they are."""

    model: str
    revision: str | None
    sha256: str

    @classmethod
    def read(cls, path: str | Path) -> "TargetFile":
        content = read_json(Path(path))
        return cls(content["model"], content["revision"], content["sha256"])

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.model, revision=self.revision)

    def config(self) -> Any:
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self.model, revision=self.revision)

    def end_ids(self) -> list[int]:
        """The tokens that end the target's turn, by its generation settings, else by its configuration."""
        from transformers import GenerationConfig

        try:
            named = GenerationConfig.from_pretrained(self.model, revision=self.revision).eos_token_id
        except OSError:  # a model folder without generation_config.json
            named = None
        if named is None:
            named = self.config().get_text_config().eos_token_id
        return [] if named is None else [named] if isinstance(named, int) else list(named)

    def load(self, dtype: "torch.dtype", device: "torch.device | str" = "cpu", tp: int = 1) -> Any:
        """The causal language model in eval mode, without gradients; safetensors only.

        With `tp` above 1 its weights are spread over that many processes, which must be all of them, by the model's own
        tensor-parallel plan.
        """
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        spread = {}
        if tp > 1:
            from transformers.distributed import DistributedConfig

            spread["distributed_config"] = DistributedConfig(tp_size=tp)
        logging.disable_progress_bar()  # a bar for each process that loads it would bury the lines that matter
        model = AutoModelForCausalLM.from_pretrained(
            self.model, revision=self.revision, dtype=dtype, use_safetensors=True, **spread
        )
        return (model if spread else model.to(device)).eval().requires_grad_(False)
