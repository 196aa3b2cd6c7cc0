"""torch.compile where it pays: chains of small operations on a GPU. On the CPU it saves less than compiling costs."""

from collections.abc import Callable
from functools import cache, wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, compiled for any shape when its first tensor is on a GPU, and as it is elsewhere."""

    @cache
    def fast() -> Callable[P, R]:
        return torch.compile(function, dynamic=True)  # when first used: it imports a compiler, half a second

    @wraps(function)
    def choose(*args: P.args, **kwargs: P.kwargs) -> R:
        first = next(x for x in args if isinstance(x, Tensor))
        return (fast() if first.is_cuda else function)(*args, **kwargs)

    return choose
