"""The ids that the encoder gives are those that a real server puts into the model for the same request."""

import importlib.util
import json
import sys

import httpx
import pytest
from stock import MODELS, make_tokenizer
from tiny import make_tiny_target

from specforge.data.chat import ChatEncoder
from specforge.data.template import Chat
from specforge.regenerate.servers import running_servers

needs_serving = pytest.mark.skipif(
    importlib.util.find_spec("fastapi") is None or importlib.util.find_spec("uvicorn") is None,
    reason="the real server needs pip install 'transformers[serving]'",
)
# The server as it is, with a note of what its model is given.
SERVER = """
import json, sys
from transformers import GenerationMixin
from transformers.cli.transformers import main
plain, path = GenerationMixin.generate, sys.argv.pop(1)
def generate(self, *args, **kwargs):
    ids = kwargs.get("input_ids", args[0] if args else None)
    with open(path, "a") as file:
        file.write(json.dumps(ids.tolist()) + "\\n")
    return plain(self, *args, **kwargs)
GenerationMixin.generate = generate
main()
"""
TOOL = {"type": "function", "function": {"name": "count", "description": "Counts.", "parameters": {}}}
QUESTION = {"role": "user", "content": "How many apples?\n\n"}
ANSWER = {"role": "assistant", "content": "<think>\nOne by one.\n</think>\n\nThere are seven."}
REQUESTS = [
    ([QUESTION], None, {}),
    ([{"role": "system", "content": "Be brief. é水"}, QUESTION, ANSWER, QUESTION], None, {}),
    ([QUESTION], [TOOL], {"enable_thinking": False}),
]


@needs_serving
def test_prompts_are_what_a_real_server_gives_its_model(tmp_path, monkeypatch):
    (tmp_path / "hf" / "hub").mkdir(parents=True)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    lengths = []
    tokenizer, seen = make_tokenizer(MODELS["qwen3"]), tmp_path / "seen.jsonl"
    model = str(make_tiny_target(tmp_path / "model", 512, tokenizer))
    words = [sys.executable, "-c", SERVER, str(seen), "serve", model, "--host", "127.0.0.1", "--device", "cpu"]
    with running_servers(
        lambda port: [*words, "--dtype", "float32", "--port", str(port)],
        count=1, gpus_each=0, logs=tmp_path / "logs", timeout=120,
    ) as (server,):  # fmt: skip
        for messages, tools, kwargs in REQUESTS:
            body = {"model": model, "messages": messages, "max_tokens": 2, "temperature": 0}
            body |= {"chat_template_kwargs": kwargs} | ({"tools": tools} if tools else {})
            answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60, trust_env=False)
            assert answer.is_success, answer.text
            lengths.append(answer.json()["usage"]["prompt_tokens"])
    given = [json.loads(line)[0] for line in seen.read_text().splitlines()]
    ours = [ChatEncoder(tokenizer, Chat(kwargs=kwargs)).prompt(messages, tools) for messages, tools, kwargs in REQUESTS]
    assert given == ours
    assert lengths == [len(prompt) for prompt in ours]
