"""Whether the target's prompts end in the middle of a thought, found out in a process of its own.

transformers takes 270 MB and more, which the client of servers does without.
"""

import json
import logging
import subprocess
import sys
from os import environ
from pathlib import Path

from specforge.data.template import Chat
from specforge.files import read_json, write_json
from specforge.regenerate.reasoning import START
from specforge.target.file import TargetFile

SECONDS = 300.0

log = logging.getLogger("specforge")


def opens_thought(target: TargetFile, chat: Chat, folder: Path) -> bool | None:
    """None where the target's tokenizer cannot be had without a network. The answer is kept in `folder`."""
    known = folder / "opens_thought.json"
    if known.exists():
        return read_json(known)
    answer = _asked(target, chat) if _here(target) else None
    if answer is None:
        log.warning(
            "%s: its tokenizer cannot be had on this machine, so whether its prompts end with %s is not known; "
            "what is before </think> counts as reasoning, and an answer cut before it as an answer",
            target.model,
            START,
        )
    else:
        write_json(known, answer)
    return answer


def _here(target: TargetFile) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if Path(target.model).is_dir():
        return True
    try:
        found = try_to_load_from_cache(target.model, "tokenizer_config.json", revision=target.revision)
    except HFValidationError:  # no name of the hub's: a folder of the server's machine
        return False
    return isinstance(found, str)


def _asked(target: TargetFile, chat: Chat) -> bool | None:
    words = json.dumps({"target": vars(target), "chat": chat.recipe(), "template": chat.text})
    try:
        done = subprocess.run(
            [sys.executable, "-m", "specforge.regenerate.opening"],
            input=words,
            capture_output=True,
            text=True,
            check=True,
            timeout=SECONDS,
            env=environ | {"HF_HUB_OFFLINE": "1"},
        )
        return json.loads(done.stdout)
    except (subprocess.SubprocessError, ValueError):
        return None


def main() -> None:
    """Reads what `_asked` sends and writes the answer."""
    words = json.load(sys.stdin)
    tokenizer, chat = TargetFile(**words["target"]).tokenizer(), Chat.of(words["chat"], words["template"])
    chat.dress(tokenizer)
    prompt = chat.render(tokenizer, [{"role": "user", "content": "Hello"}], None)
    sys.stdout.write(json.dumps(prompt.rstrip().endswith(START)))


if __name__ == "__main__":
    main()
