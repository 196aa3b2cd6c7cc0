"""Which template makes prompts: one choice, known by content, the same in every step."""

import pytest
from stock import MODELS, make_tokenizer
from tiny import make_conversations, make_target_file, make_tiny_target

from specforge.config.steps import Regenerate
from specforge.data.chat import ChatEncoder
from specforge.data.template import SHIPPED, Chat, Refused, template_facts
from specforge.errors import UserError
from specforge.regenerate.engine import Block
from specforge.regenerate.local import LocalEngine
from specforge.regenerate.servers import sglang_command
from specforge.target.file import TargetFile

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How many?"},
    {"role": "assistant", "content": "Seven."},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": "Eight."},
]


def test_a_template_is_a_file_or_a_shipped_name(tmp_path):
    (tmp_path / "mine.jinja").write_text("hello")
    assert Chat.choose(str(tmp_path / "mine.jinja")).text == "hello"
    assert "<|im_start|>" in Chat.choose("chatml").text
    assert Chat.choose(None).recipe() == {"name": "tokenizer", "sha256": None, "kwargs": {}}
    with pytest.raises(UserError, match=r"chatm is neither a file nor a shipped template \(chatml, gemma, llama3\)"):
        Chat.choose("chatm")


def test_its_recipe_follows_the_content_and_makes_it_again(tmp_path):
    path = tmp_path / "mine.jinja"
    recipes = []
    for text in ("a", "b"):
        path.write_text(text)
        chat = Chat.choose(str(path), {"enable_thinking": False})
        recipes.append(chat.recipe())
        assert Chat.of(chat.recipe(), chat.text) == chat
    assert recipes[0] != recipes[1]


@pytest.mark.parametrize(("name", "stock"), [("chatml", "qwen2.5"), ("llama3", "llama3.1"), ("gemma", "gemma3")])
def test_shipped_templates_make_one_sequence_that_ends_as_their_models_do(name, stock):
    tokenizer = make_tokenizer(MODELS[stock])
    (sequence,) = ChatEncoder(tokenizer, Chat.choose(name)).sequences(TALK)
    assert tokenizer.decode(sequence.ids).count("Be brief.") == 1
    assert tokenizer.decode(sequence.ids).endswith(f"Eight.{MODELS[stock].end}")
    assert sum(sequence.mask) == len(tokenizer.encode("Seven.") + tokenizer.encode("Eight.")) + 2
    assert (SHIPPED / f"{name}.jinja").is_file()


def test_a_template_that_writes_the_date_is_told():
    tokenizer = make_tokenizer(MODELS["llama3.1"])
    tokenizer.chat_template = "{{ date_string or strftime_now('%d') }}"
    assert template_facts(tokenizer, Chat())["dated"]
    assert not template_facts(tokenizer, Chat(kwargs={"date_string": "26 Jul 2024"}))["dated"]


def test_the_variables_reach_the_prompt():
    tokenizer = make_tokenizer(MODELS["llama3.1"])
    ids = ChatEncoder(tokenizer, Chat(kwargs={"date_string": "1 May 2025"})).prompt(TALK[:2])
    assert "Today Date: 1 May 2025" in tokenizer.decode(ids)


def test_the_local_engine_says_what_the_encoder_reads(tmp_path):
    target = TargetFile.read(make_target_file(tmp_path, make_tiny_target(tmp_path / "model")))
    text = "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}{{ mood }}<|im_start|>"
    chat = Chat("mine", text, {"mood": "glad"})
    engine = LocalEngine.load(target, Regenerate(max_tokens=4, temperature=0), chat)
    seen = []
    plain = engine._generate
    engine._generate = lambda prompts, room: seen.extend(prompts) or plain(prompts, room)
    record = make_conversations(2)[1]
    list(engine.run([Block([record], ())]))
    assert seen[0] == ChatEncoder(target.tokenizer(), chat).prompt(record["conversations"][:1])
    assert "glad" in target.tokenizer().decode(seen[0])


def test_a_server_gets_a_template_only_when_one_is_set(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    path = Chat("mine", "text").file(tmp_path)
    assert path.read_text() == "text"
    assert "--chat-template" not in sglang_command("model", None, 1, Chat().file(tmp_path))(1)
    words = list(sglang_command("model", None, 1, path)(1))
    assert words[words.index("--chat-template") + 1] == str(path)


def test_a_template_without_the_conversations_roles_raises():
    with pytest.raises(Refused, match="roles must alternate"):
        list(ChatEncoder(make_tokenizer(MODELS["gemma3"])).sequences([TALK[1], *TALK[1:]]))
