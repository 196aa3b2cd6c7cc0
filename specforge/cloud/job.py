"""One rule's job as the cloud sees it: what decides its result, which files go in and come out, where it runs."""

from dataclasses import dataclass
from typing import Any

from specforge.files import digest

# Of a request: how a step runs, not what it makes. Work is the same work whatever these say.
HOW = ("placement", "threads", "wandb", "skip_download", "regenerated")


WHERE = (*HOW, "place")


def params_digest(params: Any) -> str:
    """Of what a rule's params say of the result, the same in a script and in a plan."""
    return digest({name: value for name, value in params.items() if name not in WHERE})


@dataclass(frozen=True)
class Job:
    """`place` is what rules/common.smk says of where this rule's jobs run."""

    rule: str
    code: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    log: str
    params: str
    place: dict[str, Any]

    @classmethod
    def of(cls, snakemake: Any) -> "Job":
        return cls(
            rule=snakemake.rule,
            code=snakemake.params.code,
            inputs=tuple(dict.fromkeys(map(str, snakemake.input))),
            outputs=tuple(map(str, snakemake.output)),
            log=snakemake.log[0],
            params=params_digest(snakemake.params),
            place=snakemake.params.place,
        )

    @property
    def function(self) -> str:
        """The app's function that does it; its name is the rule's unless the place says otherwise."""
        return self.place.get("function", self.rule)

    def work(self, request: dict[str, Any], inputs: dict[str, str]) -> str:
        """The name of the work: equal for equal code, options and input bytes."""
        decisive = {key: value for key, value in request.items() if key not in HOW}
        return digest(self.rule, self.code, decisive, inputs)
