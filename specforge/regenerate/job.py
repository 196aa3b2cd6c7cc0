"""What the steps of regeneration share: the work folder of a request, its engine, the gate on failures."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specforge.config.steps import Regenerate
from specforge.data.template import Chat
from specforge.errors import UserError
from specforge.files import digest, publish, sha256_file, write_jsonl
from specforge.regenerate.blocks import Source, Work
from specforge.regenerate.engine import Engine
from specforge.regenerate.fill import failures, fill
from specforge.regenerate.http import HttpEngine
from specforge.regenerate.opening import opens_thought
from specforge.regenerate.servers import running_servers, sglang_command
from specforge.target.file import TargetFile

log = logging.getLogger("specforge")


@dataclass(frozen=True)
class Job:
    """One regeneration: a source, a target and the settings. Its folder is named by all that decides the result."""

    source: Source
    target: TargetFile
    recipe: Regenerate
    chat: Chat
    folder: Path
    threads: int

    @classmethod
    def of(
        cls,
        source: str,
        target: str,
        settings: dict[str, Any],
        placement: dict[str, Any],
        chat: Chat,
        code: str,
        work: str,
        threads: int,
    ) -> "Job":
        """Raises UserError where the source cannot be used."""
        model = TargetFile.read(target)
        key = digest(settings, chat.recipe(), code, sha256_file(Path(source)), model.sha256)
        recipe = Regenerate(**settings, **placement)
        return cls(Source(Path(source), recipe.num_samples), model, recipe, chat, Path(work) / key, threads)

    @property
    def work(self) -> Work:
        return Work(self.source, self.folder)

    @property
    def again(self) -> str:
        """The command that asks for what is missing."""
        rule = "regenerate_dataset" if self.recipe.shards == 1 else "regenerate_shard"
        return f"snakemake --cores all --forcerun {rule}"

    def say(self, blocks: range, place: Path, label: str) -> int:
        """Has the target say what is missing of the blocks; returns how many failed. Servers write into `place`."""
        allowed = self.recipe.max_failed_share * self.source.size(blocks)
        return fill(self.work, blocks, self._engine(place / "servers"), allowed, label)

    def check(self, blocks: range, failed: int, place: Path, errors: Path | None = None) -> None:
        """Raises UserError where more than `max_failed_share` of the blocks failed, after listing them in `place`.

        What servers refused is then asked again by the next run: so much points at the server or the settings.
        """
        total, share = self.source.size(blocks), self.recipe.max_failed_share
        if failed <= share * total:
            return
        listed = place / "errors.jsonl"
        write_jsonl(listed, failures(self.work, blocks))
        if errors:
            publish(listed, errors)
        first = next(failures(self.work, blocks))
        if self.recipe.engine != "transformers":
            self.work.forget_failures(blocks)
        raise UserError(
            f"{failed} of {total} conversations failed, more than regenerate.max_failed_share ({share:g}), "
            f"so regeneration stopped; the first is {first['id']!r} ({first['error']}), all are in {listed}."
        )

    @contextmanager
    def _engine(self, logs: Path) -> Iterator[Engine]:
        recipe, target = self.recipe, self.target
        if recipe.engine == "transformers":
            import torch

            from specforge.regenerate.local import LocalEngine

            torch.set_num_threads(self.threads)
            yield LocalEngine.load(target, recipe, self.chat)
        elif recipe.engine == "endpoint":
            if self.chat.text is not None:
                log.warning(
                    "chat_template: the servers of endpoints render by their own; start them with %s", self.chat.name
                )
            key = os.environ.get("OPENAI_API_KEY", "").strip() or None
            yield HttpEngine(
                recipe.endpoints, target.model, recipe, self.chat.kwargs, api_key=key, opened=self._opens_thought()
            )
        else:
            command = sglang_command(
                target.model,
                target.revision,
                recipe.tp_size,
                self.chat.file(logs.parent),
                recipe.reasoning_parser,
                recipe.tool_call_parser,
                recipe.server_python,
            )
            with running_servers(command, count=recipe.num_servers, gpus_each=recipe.tp_size, logs=logs) as servers:
                yield HttpEngine(servers, target.model, recipe, self.chat.kwargs, opened=self._opens_thought())

    def _opens_thought(self) -> bool | None:
        """See split_reasoning; where the server takes the reasoning out there is nothing left to split."""
        return False if self.recipe.reasoning_parser else opens_thought(self.target, self.chat, self.folder)
