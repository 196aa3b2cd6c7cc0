"""One turn asked of an OpenAI-compatible server, and what its reply means."""

import asyncio
import json
import random
from collections.abc import Callable
from typing import Any, Literal

from specforge.config.steps import Regenerate
from specforge.files import digest
from specforge.regenerate.engine import Completion, Dialogue
from specforge.regenerate.reasoning import split_reasoning
from specforge.regenerate.wire import Wire, wire_to

ATTEMPTS = 6


class FailedTurn(Exception):
    """This conversation cannot go on; others can. `slow`: the server took it and never answered."""

    def __init__(self, cause: str, slow: bool = False):
        super().__init__(cause)
        self.slow = slow


class ServerTrouble(Exception):
    """This server does not go on with the conversation, for now or for good; it may itself do so, or another may.

    It cannot be reached, has a fault (5xx), or is asked too much (429).
    """

    def __init__(self, cause: str, kind: Literal["lost", "broken", "busy"]):
        super().__init__(cause)
        self.kind = kind


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
    ):
        self.seed, self.backoff, self.patience = settings.seed, backoff, patience
        self._words = _words(model, settings, template_kwargs)
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._wires: dict[str, Wire] = {}

    async def close(self) -> None:
        for wire in self._wires.values():
            await wire.close()

    async def complete(self, server: str, dialogue: Dialogue, gone: Callable[[], bool]) -> Completion:
        """The turn by the server at that URL, asked again while its trouble may pass and it is not gone.

        Raises FailedTurn, or ServerTrouble that lasts.
        """
        if server not in self._wires:
            self._wires[server] = wire_to(f"{server}/v1/chat/completions", self._headers, self.patience)
        wire, body = self._wires[server], self._body(dialogue)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await self._ask(wire, body)
            except ServerTrouble as trouble:
                if attempt == ATTEMPTS or (trouble.kind == "lost" and gone()):
                    raise
            await asyncio.sleep(self.backoff * 2 ** (attempt - 1) * random.uniform(0.75, 1.25))
        raise AssertionError("the last attempt returns or raises")

    async def _ask(self, wire: Wire, body: bytes) -> Completion:
        try:
            status, reason, content = await wire.post(body)
        except TimeoutError:
            raise FailedTurn(f"no answer within {self.patience:.0f} s", slow=True) from None
        except OSError as error:
            raise ServerTrouble(str(error) or type(error).__name__, "lost") from None
        if status < 300:
            return _completion(content)
        complaint = f"HTTP {status}: {_complaint(content) or reason}"
        if status == 429 or status >= 500:
            raise ServerTrouble(complaint, "busy" if status == 429 else "broken")
        raise FailedTurn(complaint)

    def _body(self, dialogue: Dialogue) -> bytes:
        seed = int(digest(self.seed, dialogue.record["id"], len(dialogue.turns))[:8], 16) >> 1
        body = self._words | {"messages": dialogue.messages(), "seed": seed}
        if dialogue.tools:
            body["tools"] = dialogue.tools
        return json.dumps(body).encode()


def _words(model: str, settings: Regenerate, template_kwargs: dict[str, Any]) -> dict[str, Any]:
    """What every request says. Words that OpenAI's own servers do not know are left out unless they are set."""
    words = {
        "model": model,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "max_tokens": settings.max_tokens,
    }
    extra = {"top_k": settings.top_k, "chat_template_kwargs": template_kwargs}
    return words | {name: value for name, value in extra.items() if value}


def _completion(content: bytes) -> Completion:
    """Servers that take the reasoning out name it `reasoning_content` (SGLang) or `reasoning` (vLLM, Ollama)."""
    try:
        reply = json.loads(content)
        choice, usage = reply["choices"][0], reply.get("usage") or {}
        message = choice["message"]
        text, reason = message.get("content") or "", choice.get("finish_reason") or "unknown"
        reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
        if not reasoning:
            reasoning, text = split_reasoning(text)
        return Completion(text, reason, usage.get("completion_tokens") or 0, reasoning)
    except (ValueError, LookupError, TypeError, AttributeError):
        told = content[:200].decode(errors="replace")
        raise FailedTurn(f"the answer is no chat completion: {told!r}") from None


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
