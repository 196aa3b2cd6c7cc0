"""While a call is waited for: its words, and how a script leaves it without ending it."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import modal

log = logging.getLogger("specforge")

LAST_WORDS_SECONDS = 15.0  # to wait for what a finished container still had to say

_leaving = threading.Event()  # a broken stream is nothing to tell of then


class Detached(SystemExit):
    """Ctrl-C or SIGTERM came while a call was waited for; the call goes on."""


@contextmanager
def telling(call: modal.FunctionCall) -> Iterator[None]:
    """The container's words as they come, to the last one when the call is over."""
    over = threading.Event()
    teller = threading.Thread(target=_tell, args=(call, over), daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        if not _leaving.is_set():
            teller.join(LAST_WORDS_SECONDS)


def _tell(call: modal.FunctionCall, over: threading.Event) -> None:
    """Begins again where the stream broke, so that words go on after a laptop's sleep."""
    told, complained = 0, False
    while True:
        try:
            for number, entry in enumerate(call.logs.stream()):
                if number >= told:
                    told = number + 1
                    for line in entry.message.splitlines():
                        log.info("%s", line)
            return
        except Exception as error:  # of the words only; what the call makes is waited for elsewhere
            if _leaving.is_set() or over.is_set():
                return
            if not complained:
                log.warning("the container's words are interrupted (%s: %s)", type(error).__name__, error)
                complained = True
        over.wait(5)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait for the end of the block, and come then."""
    asked: list[int] = []
    before = {n: signal.signal(n, lambda number, frame: asked.append(number)) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number in asked[:1]:
        signal.raise_signal(number)


@contextmanager
def detachable(rule: str, call: str) -> Iterator[None]:
    """Ctrl-C and SIGTERM leave the call running and say so."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        log.warning(
            "%s: detached; call %s goes on. The same command attaches to it again; "
            "`python -m specforge.cloud cancel` ends it.", rule, call,
        )  # fmt: skip
        _leaving.set()
        raise Detached(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
