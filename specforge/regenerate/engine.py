"""What every engine shares: a conversation that is being said anew, and the seam that engines fit."""

from collections.abc import Container, Generator, Iterable, Sequence
from itertools import takewhile
from typing import Any, NamedTuple, Protocol

from specforge.data.template import history
from specforge.regenerate.calls import Call, answered, is_broken, with_ids

Record = dict[str, Any]
UNKNOWN = "unknown"  # the finish reason where a server gives none


class Completion(NamedTuple):
    """What the target said in one turn. `tokens` counts all that it generated, reasoning and end token included.

    `prompt_tokens` counts what it was given, and `token_ids` are those that it generated, end token included; None and
    empty where the engine does not say.
    """

    text: str
    finish_reason: str
    tokens: int
    reasoning: str = ""
    calls: Sequence[Call] = ()
    prompt_tokens: int | None = None
    token_ids: Sequence[int] = ()


class Block(NamedTuple):
    """Consecutive conversations of the input, and the ids of those that need not be said again."""

    records: Iterable[Record]
    done: Container[str]


class Engine(Protocol):
    """Says conversations anew: every assistant turn by the target, on the history regenerated so far."""

    repeatable: bool
    """Whether a conversation that failed fails again, so that trying anew on the next run is of no use."""

    def run(self, blocks: Iterable[Block]) -> Generator[Record, None, None]:
        """Yields a row for each record that is not done, in any order, as soon as it is finished.

        A row is the record with new assistant turns, `tokens`, their total, and `ended_early`, the reason, where it
        stops before the record does; or {"id", "excluded"}, where nothing is left by the settings' wish; or
        {"id", "error"}, with `lasting` where asking again is of no use. Blocks are asked for one by one, when there is
        room for their records.
        Raises UserError when nothing can go on.
        """


class Dialogue:
    """One conversation on its way: the recorded user, tool and system turns, the target's own answers."""

    def __init__(self, record: Record, keep_truncated: bool = True):
        self.record, self.keep_truncated = record, keep_truncated
        self.turns: list[dict[str, Any]] = []
        self.tokens = 0
        self.error: str | None = None
        self.lasting = False
        self.excluded: str | None = None
        self.ended_early: str | None = None
        self.turns += self._following(0)

    @property
    def due(self) -> bool:
        """Whether the target's next turn is awaited."""
        over = self.error or self.excluded or self.ended_early
        return not over and len(self.turns) < len(self.record["conversations"])

    @property
    def tools(self) -> list[dict[str, Any]] | None:
        return self.record.get("tools")

    def messages(self) -> list[dict[str, Any]]:
        """The history as chat templates and servers take it; the template decides what of the reasoning it shows."""
        return history(self.turns)

    def answer(self, completion: Completion) -> None:
        """Takes the target's turn, then the recorded ones up to its next.

        A turn without a word or a call teaches nothing, and none can follow a broken call: it ends the conversation
        after the answer before, or fails it. So does one that the length limit cut, where those are not kept, but then
        a conversation with nothing left is excluded, not failed. A turn that was cut while it thought, or after which
        the recorded ones make no sense, is kept as the last.
        """
        reason, cut = completion.finish_reason, completion.finish_reason == "length"
        if cut:  # within a call, if in any: what was said before that stands
            completion = completion._replace(calls=[call for call in completion.calls if not is_broken(call)])
        spoke = bool(completion.text.strip() or completion.calls)
        if cut and not (self.keep_truncated and (spoke or completion.reasoning)):
            self.excluded = None if self._stop("length") else "length"
        elif not spoke and not cut:
            self._drop("empty", f"empty completion (finish reason {reason})")
        elif broken := [call["function"]["name"] for call in completion.calls if is_broken(call)]:
            self._drop("broken_call", f"the arguments of its call of {broken[0]} are no JSON object")
        else:
            self._take(completion, spoke)

    def _take(self, completion: Completion, spoke: bool) -> None:
        place = len(self.turns)
        turn = _turn(completion, with_ids(completion.calls, self.record["id"], place))
        following = self._following(place + 1)
        if following:
            found = answered(turn, self.record["conversations"][place], following) if spoke else "unanswered"
            if isinstance(found, str):
                self.ended_early, following = found, []
            else:
                turn, following = found
        self.turns += [turn, *following]
        self.tokens += completion.tokens

    def fail(self, cause: str) -> None:
        self.error = f"turn {len(self.turns) + 1}: {cause}"

    def refuse(self, cause: str) -> None:
        """The next turn cannot be asked for: ends after the answer before; without one it fails for good."""
        self._drop("refused", cause)
        self.lasting = self.error is not None

    def row(self) -> Record:
        identity = {"id": self.record["id"]}
        if self.error is not None:
            return identity | {"error": self.error} | ({"lasting": True} if self.lasting else {})
        if self.excluded is not None:
            return identity | {"excluded": self.excluded}
        early = {"ended_early": self.ended_early} if self.ended_early else {}
        return self.record | {"conversations": self.turns, "tokens": self.tokens} | early

    def _drop(self, reason: str, cause: str) -> None:
        """The target's turn is of no use."""
        if not self._stop(reason):
            self.fail(cause)

    def _stop(self, reason: str) -> bool:
        """Ends after the last answer; False without one, when there is nothing to end after."""
        answers = [place for place, turn in enumerate(self.turns) if turn["role"] == "assistant"]
        if answers:
            self.ended_early = reason
            del self.turns[answers[-1] + 1 :]
        return bool(answers)

    def _following(self, place: int) -> list[dict[str, Any]]:
        """The recorded turns from `place` on, up to the next answer."""
        return list(takewhile(lambda turn: turn["role"] != "assistant", self.record["conversations"][place:]))


def _turn(completion: Completion, calls: list[Call]) -> dict[str, Any]:
    """Without what is empty."""
    told = {
        "reasoning": completion.reasoning,
        "tool_calls": calls,
        "finish_reason": completion.finish_reason,
        "prompt_tokens": completion.prompt_tokens,
        "token_ids": list(completion.token_ids),
    }
    said = {"role": "assistant", "content": completion.text}
    return said | {key: value for key, value in told.items() if value}
