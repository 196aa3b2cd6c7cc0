"""Chat models' templates as far as tokenizing can tell them apart, on a small tokenizer with their special tokens.

Written anew for these tests, shorter than the stock ones; each keeps what matters of its own: what it adds (a system
turn, a date, tools), what it changes of earlier turns, how it asks for an answer and how an answer ends.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = (
    "The quick brown fox jumps over the lazy dog. How many apples are in the basket by the door?",
    "system user assistant model There are seven; two of them are green.\n\nPlease think about rain.\n\nOn a tin roof.",
)
TURN = "'<|im_start|>' + m.role + '\\n' + "

# Keeps a thought in the answers after the last question only, and writes an empty one before the very last answer.
QWEN3 = (
    "{%- if tools -%}{{ '<|im_start|>system\\n' }}{%- if messages[0].role == 'system' -%}"
    "{{ messages[0].content + '\\n\\n' }}{%- endif -%}{{ '# Tools' }}{%- for t in tools -%}{{ '\\n' + t | tojson }}"
    "{%- endfor -%}{{ '<|im_end|>\\n' }}{%- elif messages[0].role == 'system' -%}"
    "{{ '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{%- endif -%}"
    "{%- set ns = namespace(last=-1) -%}{%- for m in messages -%}{%- if m.role == 'user' -%}"
    "{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}"
    "{%- for m in messages -%}{%- if m.role == 'user' -%}{{ " + TURN + "m.content + '<|im_end|>\\n' }}"
    "{%- elif m.role == 'tool' -%}"
    "{{ '<|im_start|>user\\n<tool_response>\\n' + m.content + '\\n</tool_response><|im_end|>\\n' }}"
    "{%- elif m.role == 'assistant' -%}{%- set c = m.content -%}{%- set r = '' -%}"
    "{%- if m.reasoning_content is string -%}{%- set r = m.reasoning_content -%}"
    "{%- elif '</think>' in m.content -%}{%- set c = m.content.split('</think>')[-1].lstrip('\\n') -%}"
    "{%- set r = m.content.split('</think>')[0].split('<think>')[-1].strip('\\n') -%}{%- endif -%}"
    "{{ '<|im_start|>assistant\\n' }}{%- if loop.index0 > ns.last and (loop.last or r) -%}"
    "{{ '<think>\\n' + r.strip('\\n') + '\\n</think>\\n\\n' + c.lstrip('\\n') }}{%- else -%}{{ c }}{%- endif -%}"
    "{%- for call in m.tool_calls or [] -%}{{ '\\n' if c or not loop.first else '' }}"
    "{{ '<tool_call>\\n' + call.function | tojson + '\\n</tool_call>' }}{%- endfor -%}{{ '<|im_end|>\\n' }}"
    "{%- endif -%}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false -%}{{ '<think>\\n\\n</think>\\n\\n' }}"
    "{%- endif -%}{%- endif -%}"
)
# Says who it is where no system turn does.
QWEN25 = (
    "{%- if messages[0].role != 'system' -%}"
    "{{ '<|im_start|>system\\nYou are Qwen, a helpful assistant.<|im_end|>\\n' }}{%- endif -%}"
    "{%- for m in messages -%}{{ " + TURN + "m.content + '<|im_end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
# Always a system turn with a date; tools in the first question; blanks around every content go.
LLAMA31 = (
    "{{- bos_token -}}{%- if date_string is not defined -%}{%- set date_string = '26 Jul 2024' -%}{%- endif -%}"
    "{%- set told = messages[0].content | trim if messages[0].role == 'system' else '' -%}"
    "{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + date_string + '\\n\\n' + told -}}"
    "{{- '<|eot_id|>' -}}{%- set ns = namespace(tools=tools) -%}{%- for m in messages -%}"
    "{%- if m.role == 'user' -%}{{- '<|start_header_id|>user<|end_header_id|>\\n\\n' -}}{%- if ns.tools -%}"
    "{{- 'Given the following functions:\\n\\n' -}}{%- for t in ns.tools -%}{{- t | tojson(indent=4) + '\\n\\n' -}}"
    "{%- endfor -%}{%- set ns.tools = none -%}{%- endif -%}{{- m.content | trim + '<|eot_id|>' -}}"
    "{%- elif m.tool_calls -%}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}"
    "{{- m.tool_calls[0].function | tojson + '<|eot_id|>' -}}{%- elif m.role != 'system' -%}"
    "{{- '<|start_header_id|>' + ('ipython' if m.role == 'tool' else m.role) + '<|end_header_id|>\\n\\n' -}}"
    "{{- m.content | trim + '<|eot_id|>' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}"
)
# The system's words and the tools stand in the last question, so each turn moves them; roles must alternate.
MISTRAL = (
    "{{- bos_token -}}{%- set told = messages[0].content + '\\n\\n' if messages[0].role == 'system' else '' -%}"
    "{%- set rest = messages[1:] if told else messages -%}{%- for m in rest -%}"
    "{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}{{- raise_exception('roles must alternate') -}}"
    "{%- endif -%}{%- if m.role == 'user' -%}{%- if loop.last and tools -%}"
    "{{- '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' -}}{%- endif -%}"
    "{{- '[INST]' + (told if loop.last else '') + m.content + '[/INST]' -}}"
    "{%- else -%}{{- m.content + eos_token -}}{%- endif -%}{%- endfor -%}"
)
# No system turn: its words begin the first question. Contents are trimmed.
GEMMA3 = (
    "{{- bos_token -}}{%- set told = messages[0].content + '\\n\\n' if messages[0].role == 'system' else '' -%}"
    "{%- for m in (messages[1:] if told else messages) -%}"
    "{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}{{- raise_exception('roles must alternate') -}}"
    "{%- endif -%}{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' -}}"
    "{{- (told if loop.first else '') + m.content | trim + '<end_of_turn>\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}"
)
# Asks for the answer with every question, whatever it is told.
PHI4 = (
    "{%- for m in messages -%}{%- if m.role == 'assistant' -%}{{- m.content + '<|im_end|>' -}}{%- else -%}"
    "{{- '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' -}}{%- if m.role == 'user' -%}"
    "{{- '<|im_start|>assistant<|im_sep|>' -}}{%- endif -%}{%- endif -%}{%- endfor -%}"
)
# Channels; a thought shows in the last answer only; an answer ends with <|return|>, in history with <|end|>.
GPT_OSS = (
    "{{- '<|start|>system<|message|>You are ChatGPT. Reasoning: ' + (reasoning_effort or 'medium') + '<|end|>' -}}"
    "{%- set told = messages[0].content if messages[0].role == 'system' else '' -%}{%- if told or tools -%}"
    "{{- '<|start|>developer<|message|># Instructions\\n\\n' + told + '\\n\\n' -}}{%- if tools -%}"
    "{{- '# Tools\\n\\n' + tools | tojson -}}{%- endif -%}{{- '<|end|>' -}}{%- endif -%}"
    "{%- for m in messages -%}{%- if m.role == 'user' -%}{{- '<|start|>user<|message|>' + m.content + '<|end|>' -}}"
    "{%- elif m.tool_calls -%}{%- if m.thinking -%}"
    "{{- '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' -}}{%- endif -%}"
    "{{- '<|start|>assistant to=functions.' + m.tool_calls[0].function.name -}}"
    "{{- '<|channel|>commentary json<|message|>' + m.tool_calls[0].function.arguments | tojson + '<|call|>' -}}"
    "{%- elif m.role == 'tool' -%}{{- '<|start|>functions to=assistant<|message|>' + m.content + '<|end|>' -}}"
    "{%- elif m.role == 'assistant' -%}{%- if loop.last and not add_generation_prompt -%}{%- if m.thinking -%}"
    "{{- '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' -}}{%- endif -%}"
    "{{- '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|return|>' -}}{%- else -%}"
    "{{- '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' -}}{%- endif -%}{%- endif -%}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|start|>assistant' -}}{%- endif -%}"
)
_DEEPSEEK = (
    "{{- bos_token -}}{%- for m in messages -%}{%- if m.role == 'system' -%}{{- m.content -}}"
    "{%- elif m.role == 'user' -%}{{- '<｜User｜>' + m.content -}}{%- else -%}"
    "{{- '<｜Assistant｜>@' + m.content.split('</think>')[-1] + '<｜end▁of▁sentence｜>' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<｜Assistant｜>' -}}"
)
# R1 opens a thought in the prompt and forgets it in history; V3.1 thinks where `thinking` is set.
DEEPSEEK_R1 = _DEEPSEEK.replace("@", "") + "{{- '<think>\\n' -}}{%- endif -%}"
DEEPSEEK_V31 = _DEEPSEEK.replace("@", "</think>") + "{{- '<think>' if thinking else '</think>' -}}{%- endif -%}"


class Model(NamedTuple):
    """A template, its special tokens (the first is `bos_token`), its end token, and what else ends its turn."""

    template: str
    special: tuple[str, ...]
    end: str
    kwargs: Mapping[str, Any] = MappingProxyType({})
    eos: str | None = None  # the tokenizer's own, where that is another
    plain: tuple[str, ...] = ()  # added tokens that are not special


CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
HARMONY = ("<|startoftext|>", "<|return|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>")
DEEPSEEK = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>")
THINK = ("<think>", "</think>", "<tool_call>", "</tool_call>")
MODELS = {
    "qwen3": Model(QWEN3, CHATML, "<|im_end|>", plain=THINK),
    "qwen3-not-thinking": Model(QWEN3, CHATML, "<|im_end|>", {"enable_thinking": False}, plain=THINK),
    "qwen2.5": Model(QWEN25, CHATML, "<|im_end|>"),
    "llama3.1": Model(LLAMA31, LLAMA, "<|eot_id|>", eos="<|end_of_text|>"),
    "mistral": Model(MISTRAL, ("<s>", "</s>", "[INST]", "[/INST]"), "</s>"),
    "gemma3": Model(GEMMA3, ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), "<end_of_turn>", eos="<eos>"),
    "phi4": Model(PHI4, (*CHATML, "<|im_sep|>"), "<|im_end|>"),
    "gpt-oss": Model(GPT_OSS, HARMONY, "<|return|>"),
    "deepseek-r1": Model(DEEPSEEK_R1, DEEPSEEK, "<｜end▁of▁sentence｜>", plain=THINK),
    "deepseek-v3.1": Model(DEEPSEEK_V31, DEEPSEEK, "<｜end▁of▁sentence｜>", plain=THINK),
    "deepseek-v3.1-thinking": Model(DEEPSEEK_V31, DEEPSEEK, "<｜end▁of▁sentence｜>", {"thinking": True}, plain=THINK),
}


def make_tokenizer(model: Model) -> PreTrainedTokenizerFast:
    """A byte-level BPE with the model's added tokens and template."""
    tokenizer = Tokenizer(models.BPE())
    # As most models' do, it takes line ends together, so that a prompt's last may merge with an answer's first.
    words = pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+"), "isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in model.special])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in model.plain])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=model.special[0],
        eos_token=model.eos or model.end,
        extra_special_tokens=list(model.special[2:]),
        chat_template=model.template,
        clean_up_tokenization_spaces=False,
    )
