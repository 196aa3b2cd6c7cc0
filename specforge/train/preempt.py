"""SIGTERM means: save, then stop."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Preempted(SystemExit):
    """SIGTERM came: the state is saved and the process ends with 143."""


@contextmanager
def sigterm_flag() -> Iterator[threading.Event]:
    """An event that SIGTERM sets instead of ending the process; inert outside the main thread."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)
