"""What every engine shares: a conversation that is being said anew, and the seam that engines fit."""

from collections.abc import Container, Generator, Iterable
from typing import Any, NamedTuple, Protocol


class Completion(NamedTuple):
    """What the target said in one turn. `tokens` counts what it generated, end token included."""

    text: str
    finish_reason: str
    tokens: int


class Engine(Protocol):
    """Says conversations anew: every assistant turn by the target, on the history regenerated so far."""

    repeatable: bool
    """Whether a conversation that failed fails again, so that trying anew on the next run is of no use."""

    def run(self, records: Iterable[dict[str, Any]], done: Container[str]) -> Generator[dict[str, Any], None, None]:
        """Yields a row for each record whose id is not in `done`, in any order, as soon as it is finished.

        A row is the record with new assistant turns, `tokens`, their total, and `ended_early` where it stops before
        the record does; or {"id", "error"}.
        Raises UserError when nothing can go on.
        """


class Dialogue:
    """One conversation on its way: the recorded user, tool and system turns, the target's own answers."""

    def __init__(self, record: dict[str, Any]):
        self.record = record
        self.turns: list[dict[str, Any]] = []
        self.tokens = 0
        self.error: str | None = None
        self.ended_early = False
        self._listen()

    @property
    def due(self) -> bool:
        """Whether the target's next turn is awaited."""
        return self.error is None and not self.ended_early and len(self.turns) < len(self.record["conversations"])

    @property
    def tools(self) -> list[dict[str, Any]] | None:
        return self.record.get("tools")

    def messages(self) -> list[dict[str, Any]]:
        """The history as chat templates and servers take it."""
        return [{key: value for key, value in turn.items() if key != "finish_reason"} for turn in self.turns]

    def answer(self, completion: Completion) -> None:
        """Takes the target's turn, then the recorded ones up to its next.

        A turn without a word teaches nothing: it ends the conversation after the answer before, or fails it.
        """
        if not completion.text.strip():
            self._stop(f"empty completion (finish reason {completion.finish_reason})")
            return
        self.turns.append({"role": "assistant", "content": completion.text, "finish_reason": completion.finish_reason})
        self.tokens += completion.tokens
        self._listen()

    def fail(self, cause: str) -> None:
        self.error = f"turn {len(self.turns) + 1}: {cause}"

    def _stop(self, cause: str) -> None:
        answered = [place for place, turn in enumerate(self.turns) if turn["role"] == "assistant"]
        if answered:
            self.ended_early = True
            del self.turns[answered[-1] + 1 :]
        else:
            self.fail(cause)

    def row(self) -> dict[str, Any]:
        if self.error is not None:
            return {"id": self.record["id"], "error": self.error}
        early = {"ended_early": True} if self.ended_early else {}
        return self.record | {"conversations": self.turns, "tokens": self.tokens} | early

    def _listen(self) -> None:
        for turn in self.record["conversations"][len(self.turns) :]:
            if turn["role"] == "assistant":
                return
            self.turns.append(turn)
