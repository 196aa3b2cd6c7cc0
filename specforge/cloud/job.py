"""One rule's job as the cloud sees it: what decides its result, which files go in and come out, where it runs."""

from dataclasses import dataclass
from typing import Any

from specforge.files import digest

# Of a request: how a step runs, not what it makes. Work is the same work whatever these say.
HOW = ("placement", "threads", "wandb", "skip_download", "regenerated")


@dataclass(frozen=True)
class Job:
    """`place` is what rules/common.smk says of where this rule's jobs run."""

    rule: str
    code: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    log: str
    place: dict[str, Any]

    @classmethod
    def of(cls, snakemake: Any) -> "Job":
        return cls(
            rule=snakemake.rule,
            code=snakemake.params.code,
            inputs=tuple(dict.fromkeys(map(str, snakemake.input))),
            outputs=tuple(map(str, snakemake.output)),
            log=snakemake.log[0],
            place=snakemake.params.get("place", {"backend": "local", "gpus": 0}),
        )

    def work(self, request: dict[str, Any], inputs: dict[str, str]) -> str:
        """The name of the work: equal for equal code, options and input bytes."""
        decisive = {key: value for key, value in request.items() if key not in HOW}
        return digest(self.rule, self.code, decisive, inputs)
