"""Whether prompts end in the middle of a thought, as a process of its own tells it."""

import pytest
from tiny import make_tiny_target

from specforge.data.template import Chat
from specforge.regenerate import opening
from specforge.regenerate.opening import opens_thought
from specforge.target.file import TargetFile

TEMPLATE = (
    "{% for m in messages %}{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}A:{% if think %}<think>\n{% endif %}{% endif %}"
)


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return TargetFile(str(make_tiny_target(tmp_path_factory.mktemp("tiny") / "model")), None, "0" * 64)


@pytest.mark.parametrize("think", [True, False])
def test_the_template_and_its_variables_decide_and_the_answer_is_kept(tmp_path, target, think, monkeypatch):
    chat = Chat("mine", TEMPLATE, {"think": think})
    assert opens_thought(target, chat, tmp_path) is think
    monkeypatch.setattr(opening, "_asked", lambda target, chat: pytest.fail("asked twice"))
    assert opens_thought(target, chat, tmp_path) is think


@pytest.mark.parametrize("model", ["tiny", "owner/tiny", "/nowhere/at/all"])
def test_without_the_tokenizer_it_is_not_known_and_the_log_says_so(tmp_path, model, caplog, monkeypatch):
    monkeypatch.setattr(opening, "_asked", lambda target, chat: pytest.fail("no use"))
    assert opens_thought(TargetFile(model, None, ""), Chat(), tmp_path) is None
    assert len(caplog.records) == 1
    assert f"{model}: its tokenizer cannot be had" in caplog.text


def test_a_folder_without_a_tokenizer_is_no_error(tmp_path, caplog):
    assert opens_thought(TargetFile(str(tmp_path), None, ""), Chat(), tmp_path) is None
    assert "its tokenizer cannot be had" in caplog.text
