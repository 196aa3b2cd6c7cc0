"""A process that tokenizes what comes in on stdin, until it closes: pickles of chunks in, pickles of results out.

`python -m specforge.data.worker`. Not multiprocessing, whose new processes run the caller's main file again, which
for a Snakemake script is the step itself; nor a fork, which a parent with threads does not survive. No torch here.
"""

import os
import pickle
import sys
from typing import BinaryIO


def serve(asked: BinaryIO, answered: BinaryIO) -> None:
    """First what to do with a chunk, a callable; then chunks."""
    work = pickle.load(asked)
    while True:
        try:
            chunk = pickle.load(asked)
        except EOFError:
            return
        pickle.dump(work(chunk), answered)
        answered.flush()


if __name__ == "__main__":
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core a worker
    with os.fdopen(os.dup(1), "wb") as results:
        os.dup2(2, 1)  # what a library prints must not mix with the results
        serve(sys.stdin.buffer, results)
