"""What turns a chunk of conversations into a record batch of the cache and its counts."""

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from specforge.data.cache import to_batch
from specforge.data.chat import ChatEncoder
from specforge.data.tally import Tally
from specforge.data.template import Chat
from specforge.target.file import TargetFile

Record = dict[str, Any]
Result = tuple[pa.RecordBatch, Tally]


@dataclass(frozen=True)
class Recipe:
    """All that decides the tokens of a conversation, in plain values, so that another process can do the same."""

    target: TargetFile
    max_length: int
    chat: Chat = field(default_factory=Chat)
    end_ids: tuple[int, ...] = ()
    train_on_reasoning: bool = True


class Tokenizing:
    """Raises UserError where the target's tokenizer cannot chat."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        tokenizer = recipe.target.tokenizer()
        self.encoder = ChatEncoder(tokenizer, recipe.chat, recipe.end_ids, recipe.train_on_reasoning)

    def __call__(self, records: list[Record]) -> Result:
        tally, rows = Tally(conversations=len(records)), []
        for record, found in zip(records, self.encoder.encode_all(records), strict=True):
            if isinstance(found, str):
                tally.refuse(record["id"], found)
                continue
            taken = [tally.take(record["id"], sequence, self.recipe.max_length) for sequence in found]
            learnt = [row for row in taken if row is not None]
            tally.nothing_learnt += not learnt
            rows += learnt
        tally.count(rows)
        tally.ends |= self.encoder.ends_used
        tally.note(self.encoder.take_counts())
        return to_batch(rows), tally
