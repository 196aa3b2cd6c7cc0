"""Where thinking ends and the answer begins, in text that no server has taken apart."""

START, END = "<think>", "</think>"


def split_reasoning(text: str, opened: bool = False) -> tuple[str, str]:
    """(reasoning, answer) of what a model said; the reasoning is empty where there is none.

    All before the first `</think>` is reasoning, with or without `<think>` in front: some templates end the prompt
    with it. Text that begins with `<think>`, or follows a prompt that does (`opened`), and never gets to `</think>`
    was cut while thinking. Both parts lose the white space around them, as in SGLang's own parsers, so that a row
    does not tell which of the two made it; text without a marker stays as it is.
    """
    before, marker, after = text.partition(END)
    opened = opened or text.lstrip().startswith(START)
    if not marker and not opened:
        return "", text
    return before.strip().removeprefix(START).strip(), after.strip()
