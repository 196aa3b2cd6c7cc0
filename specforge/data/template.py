"""The chat template: one choice that regeneration, tokenizing and evaluation share.

No torch and no transformers here: the rules resolve the choice while they plan.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from specforge.errors import UserError
from specforge.files import write_text

SHIPPED = Path(__file__).parent / "templates"
OWN = "tokenizer"
OURS = ("finish_reason", "reasoning", "prompt_tokens", "token_ids")  # keys of a turn that no template reads


class Refused(Exception):
    """A conversation that its chat template does not render; the text is the reason, as a sentence."""


@dataclass(frozen=True)
class Chat:
    """How conversations become prompts: a template (None: the tokenizer's own) and the variables it is given."""

    name: str = OWN
    text: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def choose(cls, name: str | None, kwargs: dict[str, Any] | None = None) -> "Chat":
        """The template that `name` stands for: a file, a shipped one, or None for the tokenizer's own.

        Raises UserError when it is none of these.
        """
        if name is None:
            return cls(kwargs=kwargs or {})
        for path in (Path(name), SHIPPED / f"{name}.jinja"):
            if path.is_file():
                return cls(name, path.read_text(encoding="utf-8"), kwargs or {})
        known = ", ".join(sorted(path.stem for path in SHIPPED.glob("*.jinja")))
        raise UserError(f"chat_template: {name} is neither a file nor a shipped template ({known}); correct the name.")

    @classmethod
    def of(cls, recipe: dict[str, Any] | None, text: str | None) -> "Chat":
        """Back from `recipe` and the template's text; None is the default."""
        return cls(recipe["name"], text, recipe["kwargs"]) if recipe else cls()

    def recipe(self) -> dict[str, Any]:
        """All that decides what it renders, as plain values; the text by its digest."""
        return {"name": self.name, "sha256": None if self.text is None else _sha256(self.text), "kwargs": self.kwargs}

    def file(self, folder: Path) -> Path | None:
        """The template as a file in `folder`, for a server; None when it is the tokenizer's own."""
        if self.text is None:
            return None
        write_text(folder / "chat_template.jinja", self.text)
        return folder / "chat_template.jinja"

    def dress(self, tokenizer: Any) -> None:
        """Gives the tokenizer this template. Raises UserError when there is none at all."""
        if self.text is not None:
            tokenizer.chat_template = self.text
        if not tokenizer.chat_template:
            raise UserError(
                f"target {tokenizer.name_or_path}: its tokenizer has no chat template; name one in chat_template."
            )

    def render(self, tokenizer: Any, messages: list[dict], tools: list | None, prompt: bool = True) -> str:
        """The text of `messages`, with the opening of the next answer where `prompt`.

        Raises Refused when the template does not take them.
        """
        try:
            return tokenizer.apply_chat_template(
                messages, tools=tools or None, tokenize=False, add_generation_prompt=prompt, **self.kwargs
            )
        except (MemoryError, ImportError):  # these are the machine's, not the conversation's
            raise
        except Exception as error:  # a template's filters and methods may raise anything
            raise Refused(f"the chat template refuses it: {error}") from error


def history(turns: list[dict]) -> list[dict]:
    """Turns as a template takes them; it decides what of an earlier answer's reasoning it shows.

    Arguments of tool calls are objects there, as servers make them of a client's text.
    """
    sent = [{key: value for key, value in turn.items() if key not in OURS} for turn in turns]
    for message, turn in zip(sent, turns, strict=True):
        if turn.get("reasoning") is not None:
            message["reasoning_content"] = turn["reasoning"]
        if isinstance(turn.get("tool_calls"), list):
            message["tool_calls"] = [_with_object(call) for call in turn["tool_calls"]]
    return sent


def _with_object(call: Any) -> Any:
    """A tool call whose arguments, where they are the text of a JSON object, are that object."""
    function = call.get("function") if isinstance(call, dict) else None
    arguments = function.get("arguments") if isinstance(function, dict) else None
    if not isinstance(arguments, str):
        return call
    try:
        value = json.loads(arguments)
    except ValueError:
        return call
    return call | {"function": function | {"arguments": value}} if isinstance(value, dict) else call


def template_source(tokenizer: Any) -> str:
    """The template's text; a tokenizer may have several, by name."""
    template = tokenizer.chat_template
    return template if isinstance(template, str) else json.dumps(template, sort_keys=True, ensure_ascii=False)


def template_facts(tokenizer: Any, chat: Chat) -> dict[str, Any]:
    """Which template made something: name, digest, variables, and whether it writes the day's date."""
    source = template_source(tokenizer)
    dated = "strftime_now" in source and not {"date_string", "date"} & chat.kwargs.keys()
    return {"name": chat.name, "sha256": _sha256(source), "kwargs": chat.kwargs, "dated": dated}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
