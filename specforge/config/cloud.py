"""Where steps run and what that costs: GPUs, the Modal app, what comes down from its volumes."""

import re
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, Field

from specforge.config.steps import Int, Section

# Dollars a GPU hour, from modal.com/pricing in 2025; yours may differ.
PRICES = {
    "T4": 0.59, "L4": 0.80, "A10": 1.10, "L40S": 1.95, "A100-40GB": 2.10, "A100-80GB": 2.50, "RTX-PRO-6000": 3.03,
    "H100": 3.95, "H200": 4.54, "B200": 6.25,
}  # fmt: skip
# Hours a job where no earlier one tells. Guesses for the tiny experiment, in pipeline order.
HOURS = {
    "download_model": 0.1, "prep_dataset": 0.05, "train_tiny_target": 0.05, "regenerate_shard": 0.05,
    "regenerate_dataset": 0.05, "preprocess_dataset": 0.05, "run_training": 0.05, "evaluate": 0.05,
}  # fmt: skip


class Gpus(NamedTuple):
    """GPUs of a job, as Modal writes them: `H100:8`."""

    kind: str
    count: int

    def __str__(self) -> str:
        return f"{self.kind}:{self.count}"

    @classmethod
    def parse(cls, text: str) -> "Gpus":
        """Raises ValueError."""
        match = re.fullmatch(r"([A-Za-z][A-Za-z0-9-]*!?)(?::([1-8]))?", text)
        if not match:
            raise ValueError(f"{text!r} is no GPU type with a count of 1 to 8, such as H100:8")
        return cls(match[1], int(match[2] or 1))


def _gpus(text: str) -> str:
    return str(Gpus.parse(text))


GpuSpec = Annotated[str, AfterValidator(_gpus)]


class Sync(Section):
    """What of a checkpoint comes down: the final draft's weights, or a receipt that stands for them."""

    checkpoints: Literal["final", "none"] = "final"


class Modal(Section):
    """The app on Modal. Prices are dollars a GPU hour, `hours` a job's length where no earlier one tells."""

    app: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")] = "specforge-opd"
    environment: str | None = None  # None: the profile's
    timeout_hours: Annotated[float, Field(gt=0, le=24)] = 24.0  # an attempt
    retries: Annotated[Int, Field(ge=0, le=10)] = 4  # attempts after a lost container or a timeout
    prices: dict[str, Annotated[float, Field(ge=0)]] = PRICES
    hours: dict[str, Annotated[float, Field(gt=0)]] = HOURS

    def price(self, gpus: Gpus) -> float:
        """Dollars an hour. Raises KeyError for a type without a price."""
        return (PRICES | self.prices)[gpus.kind.rstrip("!")] * gpus.count

    def expected_hours(self, rule: str) -> float:
        return (HOURS | self.hours).get(rule, 0.0)
