"""One turn asked of an OpenAI-compatible server, and what its reply means."""

import asyncio
import json
import random
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from time import monotonic, time
from typing import Any, Literal

import msgspec

from specforge.config.steps import Regenerate
from specforge.files import digest
from specforge.regenerate.calls import make_call
from specforge.regenerate.engine import UNKNOWN, Completion, Dialogue
from specforge.regenerate.reasoning import END, split_reasoning
from specforge.regenerate.reply import READER, ChatCompletion, Usage
from specforge.regenerate.wire import Wire, wire_to

ATTEMPTS = 6
REFUSALS = (400, 413, 422)  # of what the conversation says or how long it is; others are of the key, the model's name
GIVEN_UP = ("abort", "error")  # finish reasons of a server that did not let the target finish


class FailedTurn(Exception):
    """This conversation cannot go on; others can. `refused`: for what it says, so it would be again."""

    def __init__(self, cause: str, refused: bool = False):
        super().__init__(cause)
        self.refused = refused


class ServerTrouble(Exception):
    """This server does not go on with the conversation, for now or for good; it may itself do so, or another may.

    It cannot be reached (lost), has a fault (broken), is asked too much (busy) and names a `pause` in seconds, or took
    the request and never answered (slow).
    """

    def __init__(self, cause: str, kind: Literal["lost", "broken", "busy", "slow"], pause: float = 0.0):
        super().__init__(cause)
        self.kind, self.pause = kind, pause


class Client:
    """Asks servers for the next turn of a conversation. Is made and closed inside a running event loop."""

    def __init__(
        self,
        model: str,
        settings: Regenerate,
        template_kwargs: dict[str, Any],
        api_key: str | None,
        backoff: float,
        patience: float,
        opened: bool | None = None,
    ):
        """`opened`: see split_reasoning; of every prompt of the job."""
        self.opened = opened
        self.seed, self.backoff, self.patience = settings.seed, backoff, patience
        self._words = _words(model, settings, template_kwargs)
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._wires: dict[str, Wire] = {}

    async def close(self) -> None:
        for wire in self._wires.values():
            await wire.close()

    async def complete(self, server: str, dialogue: Dialogue, gone: Callable[[], bool]) -> Completion:
        """The turn by the server at that URL, asked again while its trouble may pass and it is not gone.

        A server that is asked too much is no fault: it is asked again for as long as it has to answer.
        Raises FailedTurn, or ServerTrouble that lasts.
        """
        if server not in self._wires:
            self._wires[server] = wire_to(f"{server}/v1/chat/completions", self._headers, self.patience)
        wire, body = self._wires[server], self._body(dialogue)
        faults = waits = 0
        deadline = monotonic() + self.patience
        while True:
            try:
                return await self._ask(wire, body)
            except ServerTrouble as trouble:
                if trouble.kind == "busy":
                    waits += 1
                    pause = max(self._backoff(min(waits, ATTEMPTS)), trouble.pause * random.uniform(1, 1.25))
                    lasts = monotonic() + pause > deadline
                else:
                    faults += 1
                    pause = self._backoff(faults)
                    lasts = faults == ATTEMPTS or trouble.kind == "slow" or (trouble.kind == "lost" and gone())
                if lasts:
                    raise
            await asyncio.sleep(pause)

    def _backoff(self, trial: int) -> float:
        return self.backoff * 2 ** (trial - 1) * random.uniform(0.75, 1.25)

    async def _ask(self, wire: Wire, body: bytes) -> Completion:
        try:
            reply = await wire.post(body)
        except TimeoutError:
            raise ServerTrouble(f"no answer within {self.patience:.0f} s", "slow") from None
        except OSError as error:
            raise ServerTrouble(str(error) or type(error).__name__, "lost") from None
        if reply.status < 300:
            return _completion(reply.content, self.opened)
        complaint = f"HTTP {reply.status}: {_complaint(reply.content) or reply.reason}"
        if reply.status == 429:
            raise ServerTrouble(complaint, "busy", _seconds(reply.retry_after))
        if reply.status >= 500:
            raise ServerTrouble(complaint, "broken")
        raise FailedTurn(complaint, refused=reply.status in REFUSALS)

    def _body(self, dialogue: Dialogue) -> bytes:
        seed = int(digest(self.seed, dialogue.record["id"], len(dialogue.turns))[:8], 16) >> 1
        messages = [_with_argument_text(message) for message in dialogue.messages()]
        body = self._words | {"messages": messages, "seed": seed}
        if dialogue.tools:
            body["tools"] = dialogue.tools
        return json.dumps(body).encode()


def _with_argument_text(message: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's form has a call's arguments as JSON text, which servers make an object again before they render."""
    if not message.get("tool_calls"):
        return message
    return message | {"tool_calls": [_with_text(call) for call in message["tool_calls"]]}


def _with_text(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not (isinstance(function, dict) and isinstance(function.get("arguments"), dict)):
        return call
    return call | {"function": function | {"arguments": json.dumps(function["arguments"], ensure_ascii=False)}}


def _words(model: str, settings: Regenerate, template_kwargs: dict[str, Any]) -> dict[str, Any]:
    """What every request says. Words that OpenAI's own servers do not know are left out unless they are set."""
    words = {
        "model": model,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "max_tokens": settings.max_tokens,
    }
    ask_ids = settings.return_token_ids or settings.engine == "sglang"
    extra = {"top_k": settings.top_k, "chat_template_kwargs": template_kwargs, "return_token_ids": ask_ids}
    return words | {name: value for name, value in extra.items() if value}


def _seconds(retry_after: str) -> float:
    """From now, of a Retry-After in seconds or with a date; 0 for none."""
    if retry_after.isdecimal():
        return float(retry_after)
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time())
    except ValueError:
        return 0.0


def _completion(content: bytes, opened: bool | None) -> Completion:
    """Raises ServerTrouble for an answer that the server did not finish, FailedTurn for what is none."""
    reply = _read(content)
    choice, usage = reply.choices[0], reply.usage or Usage()
    message, reason = choice.message, choice.finish_reason or UNKNOWN
    if reason in GIVEN_UP:
        raise ServerTrouble(f"the server did not finish the answer (finish reason {reason})", "broken")
    text, reasoning = message.content or "", message.reasoning_content or message.reasoning or ""
    if not reasoning:
        reasoning, text = _split(text, reason, opened)
    calls = [make_call(call.function.name, call.function.arguments) for call in message.tool_calls or ()]
    tokens = usage.completion_tokens or 0
    return Completion(text, reason, tokens, reasoning, calls, usage.prompt_tokens, choice.token_ids or ())


def _read(content: bytes) -> ChatCompletion:
    """A torn answer is the server's fault; JSON of another kind, or text that is none, would come again."""
    told = repr(content[:200].decode(errors="replace"))
    try:
        return READER.decode(content)
    except (msgspec.ValidationError, RecursionError) as error:
        raise FailedTurn(f"the answer is no chat completion ({error}): {told}") from None
    except msgspec.DecodeError as error:
        if _is_json(content):
            raise FailedTurn(f"the answer holds what is no text or number ({error}): {told}") from None
        raise ServerTrouble(f"the answer is no JSON: {told}", "broken") from None


def _is_json(content: bytes) -> bool:
    """To Python, which takes half a character and NaN."""
    try:
        json.loads(content)
    except RecursionError:
        return True
    except ValueError:
        return False
    return True


def _split(text: str, reason: str, opened: bool | None) -> tuple[str, str]:
    """As split_reasoning, but a server may have taken an empty thought out: only a cut answer is all thought."""
    return split_reasoning(text, opened if END in text or reason == "length" else False)


def _complaint(content: bytes) -> str:
    """The server's own words, which servers put in different places."""
    try:
        reply = json.loads(content)
    except ValueError:
        reply = None
    words = reply if isinstance(reply, dict) else {}
    error = words.get("error")
    said = error.get("message") if isinstance(error, dict) else error
    return str(said or words.get("message") or words.get("detail") or content.decode(errors="replace"))[:300]
