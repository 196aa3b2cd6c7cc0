"""A process that tokenizes what comes in on stdin, until it closes; `python -m specforge.data.worker`.

Not multiprocessing, whose new processes run the caller's main file again, which for a Snakemake script is the step
itself; nor a fork, which a parent with threads does not survive. No torch here.

A message is its length, 8 bytes, and its bytes: JSON of the recipe and then of each chunk's records in, as the records
are on disk (msgpack has no integer beyond 64 bits, and a tool's schema may); msgpack of the Arrow batch and the counts
out.
"""

import os
import sys
from collections import Counter
from typing import Any, BinaryIO

import msgspec
import pyarrow as pa

from specforge.data.cache import SCHEMA
from specforge.data.tally import Tally
from specforge.data.tokenizing import Recipe, Result, Tokenizing

SIZE = 8  # bytes, little-endian


class Answered(msgspec.Struct):
    """A chunk's result on its way: the batch in Arrow's own form."""

    batch: bytes
    tally: Tally


def send(file: BinaryIO, content: bytes) -> None:
    file.write(len(content).to_bytes(SIZE, "little"))
    file.write(content)
    file.flush()


def receive(file: BinaryIO) -> bytes:
    """The next message. Raises EOFError where there is none, or only its beginning."""
    head = file.read(SIZE)
    content = file.read(int.from_bytes(head, "little"))
    if len(head) < SIZE or len(content) < int.from_bytes(head, "little"):
        raise EOFError
    return content


def packed(result: Result) -> bytes:
    batch, tally = result
    return msgspec.msgpack.encode(Answered(batch.serialize().to_pybytes(), tally))


def unpacked(content: bytes) -> Result:
    answered = msgspec.msgpack.decode(content, type=Answered, dec_hook=_counter)
    return pa.ipc.read_record_batch(pa.py_buffer(answered.batch), SCHEMA), answered.tally


def _counter(_: type, value: dict) -> Counter:
    """msgspec has no Counter of its own, and there is no other type that it does not know."""
    return Counter(value)


def serve(asked: BinaryIO, answered: BinaryIO) -> None:
    """First the recipe; then chunks."""
    work = Tokenizing(msgspec.json.decode(receive(asked), type=Recipe))
    while True:
        try:
            chunk: list[dict[str, Any]] = msgspec.json.decode(receive(asked))
        except EOFError:
            return
        send(answered, packed(work(chunk)))


if __name__ == "__main__":
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core a worker
    sys.modules["torch"] = None  # transformers then goes without; with it a worker starts later and takes more memory
    os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"  # that it goes without
    with os.fdopen(os.dup(1), "wb") as results:
        os.dup2(2, 1)  # what a library prints must not mix with the results
        serve(sys.stdin.buffer, results)
