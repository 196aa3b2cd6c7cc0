"""The data sets that have a name here: one entry each. README shows how to add one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]


def as_it_is(row: Row) -> Row:
    """For rows that are in one of the three forms already."""
    return row


def chat(turns: str, identity: str | None = None) -> Callable[[Row], Row]:
    """For rows in one of the three forms, but for the key of their id; what else they hold is left out."""
    return lambda row: {turns: row.get(turns), "id": row.get(identity) if identity else None}


def pair(ask: str, answer: str) -> Callable[[Row], Row]:
    """For rows of one question and one answer."""
    return lambda row: {
        "messages": [{"role": "user", "content": row.get(ask)}, {"role": "assistant", "content": row.get(answer)}]
    }


@dataclass(frozen=True)
class HubSource:
    """Where a data set lies on the hub and how its rows become one of the three forms.

    `subsets` are read one after the other, all of them unless `dataset: name:subset` names one. `file` is for a data
    set of one JSON array: the client would download all of it before the first row, so it is read here, in blocks.
    `images` says that each row is about an image, which its key "image" names.
    """

    repository: str
    subsets: tuple[str | None, ...] = (None,)
    split: str = "train"
    file: str | None = None
    row: Callable[[Row], Row] = as_it_is
    images: bool = False


SOURCES = {
    "ultrachat": HubSource(
        "HuggingFaceH4/ultrachat_200k",
        split="train_sft",
        row=chat("messages", "prompt_id"),
    ),
    "sharegpt": HubSource(
        "Aeala/ShareGPT_Vicuna_unfiltered",
        file="ShareGPT_V4.3_unfiltered_cleaned_split.json",  # the repository holds older versions too
    ),
    "eaglechat": HubSource("zhaode/EagleChat"),
    "perfectblend": HubSource("mlabonne/open-perfectblend", row=chat("conversations")),
    "magpie-qwen2.5-pro-1m-v0.1": HubSource(
        "Magpie-Align/Magpie-Qwen2.5-Pro-1M-v0.1",
        row=chat("conversations", "uuid"),
    ),
    "sharegpt4v": HubSource(
        "Lin-Chen/ShareGPT4V",
        file="sharegpt4v_instruct_gpt4-vision_cap100k.json",  # all of its subset ShareGPT4V
        images=True,
    ),
    "allava4v": HubSource(
        "FreedomIntelligence/ALLaVA-4V",
        file="allava_laion/ALLaVA-Instruct-LAION-4V.json",  # all of its subset allava_laion, split instruct
        images=True,
    ),
    "opc": HubSource(
        "OpenCoder-LLM/opc-sft-stage1",
        subsets=("filtered_infinity_instruct", "largescale_diverse_instruct", "realuser_instruct"),
        row=pair("instruction", "output"),
    ),
}
SYNTHETIC = "synthetic"
NAMES = (SYNTHETIC, *SOURCES)
