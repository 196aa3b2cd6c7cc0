"""From the dict that Snakemake merged to a Config, or to one clear sentence a mistake."""

import difflib
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from specforge.config.schema import Config
from specforge.errors import UserError

# Snakemake reads a value of --config as a number, True, False or text; these are YAML's words.
WORDS = {"true": True, "false": False, "null": None}


def load_config(raw: Mapping[str, Any]) -> Config:
    """Raises UserError listing every mistake with its dotted key, one line each."""
    try:
        return Config.model_validate({k: WORDS.get(v, v) if isinstance(v, str) else v for k, v in raw.items()})
    except ValidationError as error:
        problems = error.errors()
        # `regenerate` is a section or false; the section's mistakes say enough
        told = [p for p in problems if not any(str(part).startswith("literal[") for part in p["loc"])]
        # a list that lost a bad item may also be too short; the item's mistake says enough
        told = [p for p in told if not any(q is not p and q["loc"][: len(p["loc"])] == p["loc"] for q in told)]
        lines = dict.fromkeys(_sentence(problem) for problem in told or problems)
        raise UserError("\n".join(lines)) from None


def _sentence(problem: dict[str, Any]) -> str:
    path = [str(part) for part in problem["loc"] if not _is_union_branch(part)]
    key = ".".join(path) or "config"
    kind, given = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        known = _keys_beside(path)
        near = difflib.get_close_matches(path[-1], known, 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys here: {', '.join(sorted(known))}."
        return f"{key}: unknown key; {hint}"
    if kind == "missing":
        return f"{key}: missing; config.yaml shows what it holds."
    if kind == "value_error":
        return f"{key}: {problem['ctx']['error']}." if path else f"{problem['ctx']['error']}."
    message = problem["msg"].removeprefix("Input ")
    return f"{key}: {given!r} {message}."


def _is_union_branch(part: object) -> bool:
    """pydantic puts the branch of a union (`Regenerate`, `literal[False]`) into the path."""
    return isinstance(part, str) and (
        part.startswith(("literal[", "function-", "tuple[", "constrained")) or part[:1].isupper()
    )


def _keys_beside(path: list[str]) -> list[str]:
    """Field names of the section that holds the last part of `path`."""
    model: Any = Config
    for part in path[:-1]:
        if part in getattr(model, "model_fields", {}):
            model = next(iter(_sections(model.model_fields[part].annotation)), None)
    return list(getattr(model, "model_fields", {}))


def _sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for inner in get_args(annotation) for section in _sections(inner)]
