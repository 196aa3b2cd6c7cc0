"""Jinja templates of the pages that are published."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template


def template(path: Path, filters: dict[str, Callable[..., Any]], autoescape: bool = False) -> Template:
    """An unknown variable is an error, and a block's own line leaves nothing behind."""
    environment = Environment(
        loader=FileSystemLoader(path.parent),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= filters
    return environment.get_template(path.name)
