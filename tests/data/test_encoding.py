"""Where a text may be cut: only at added tokens that nothing around them can change."""

import pytest
from stock import MODELS, make_tokenizer
from tokenizers import AddedToken

from specforge.data.encoding import TextEncoder, safe_cuts

CHATML = MODELS["qwen2.5"]


def cuts(*more: AddedToken) -> set[str]:
    tokenizer = make_tokenizer(CHATML)
    tokenizer.add_tokens(list(more))
    return set(safe_cuts(tokenizer, CHATML.template, [tokenizer.eos_token_id]))


def test_the_templates_own_tokens_and_the_end_token_are_cuts():
    assert cuts() >= {"<|im_start|>", "<|im_end|>"}


@pytest.mark.parametrize(
    "token",
    [
        AddedToken("x<|im_end|>", normalized=False),
        AddedToken("<|im_end|>\n", normalized=False),
        AddedToken("text<|im", normalized=False),
        AddedToken("text<", normalized=False),
    ],
    ids=lambda token: token.content.strip(),
)
def test_a_token_that_can_cover_the_end_tokens_start_forbids_the_cut(token):
    assert "<|im_end|>" not in cuts(token)


@pytest.mark.parametrize("side", ["lstrip", "rstrip", "single_word"])
def test_a_token_that_looks_beside_itself_is_no_cut(side):
    assert "<|im_end|>" not in cuts(AddedToken("<|im_end|>", special=True, normalized=False, **{side: True}))


def test_encoding_ignores_truncation_that_the_file_asks_for():
    tokenizer = make_tokenizer(CHATML)
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    encode = TextEncoder(tokenizer)
    assert len(encode.one("How many apples are in the basket?")) > 3
