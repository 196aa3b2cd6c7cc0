"""What an OpenAI-compatible server may answer: the part of its JSON that is read, with its types."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta


class SaidFunction(msgspec.Struct):
    name: str
    arguments: str | dict[str, Any] | None = None


class SaidCall(msgspec.Struct):
    function: SaidFunction


class Message(msgspec.Struct):
    """Servers that take the reasoning out name it `reasoning_content` (SGLang) or `reasoning` (vLLM, Ollama)."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[SaidCall] | None = None


class Choice(msgspec.Struct):
    message: Message
    finish_reason: str | None = None
    token_ids: list[int] | None = None


class Usage(msgspec.Struct):
    completion_tokens: int | None = None
    prompt_tokens: int | None = None


class ChatCompletion(msgspec.Struct):
    choices: Annotated[list[Choice], Meta(min_length=1)]
    usage: Usage | None = None


READER = msgspec.json.Decoder(ChatCompletion)
