"""One line now and then that says how far a long step is and how long it still takes."""

import logging
import time

log = logging.getLogger("specforge")


class Progress:
    """Counts done units and logs `label: done/total unit, rate, time left` at most every `every` seconds."""

    def __init__(self, label: str, total: int, unit: str, done: int = 0, every: float = 5.0):
        self.label, self.total, self.unit, self.every = label, total, unit, every
        self.done = self.start_done = done
        self.started = self.shown = time.monotonic()

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count
        now = time.monotonic()
        if now - self.shown >= self.every or self.done == self.total:
            self.shown = now
            rate = (self.done - self.start_done) / max(now - self.started, 1e-9)
            left = (self.total - self.done) / rate if rate > 0 else float("inf")
            log.info(
                "%s: %d/%d %s, %.1f/s, %.0f s left%s",
                self.label, self.done, self.total, self.unit, rate, left, f", {note}" if note else "",
            )  # fmt: skip
