"""Reads ahead in a thread, so that a GPU does not wait for the disk."""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
DEPTH = 2


def prefetched(items: Iterable[T], ahead: bool) -> Iterator[T]:
    """The same items; where `ahead`, up to DEPTH are ready before they are asked for; errors come in turn."""
    if not ahead:
        yield from items
        return
    ready: queue.Queue = queue.Queue(DEPTH)
    stop = threading.Event()

    def put(kind: str, value: object) -> bool:
        while not stop.is_set():
            try:
                ready.put((kind, value), timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def read() -> None:
        try:
            for item in items:
                if not put("item", item):
                    return
            put("end", None)
        except BaseException as error:  # handed on, to be raised where the item is awaited
            put("error", error)

    threading.Thread(target=read, daemon=True).start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stop.set()
