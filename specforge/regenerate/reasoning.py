"""Where thinking ends and the answer begins, in text that no server has taken apart."""

START, END = "<think>", "</think>"


def split_reasoning(text: str, opened: bool | None) -> tuple[str, str]:
    """(reasoning, answer) of what a model said; the reasoning is empty where there is none.

    `opened`: whether the prompt ends with `<think>`, as some templates have it; None where that is not known. All
    before the first `</think>` is reasoning if the text begins with `<think>`, or the prompt did or may have. Other
    answers may quote the marker and are left whole. Without it, text that begins with `<think>` or follows it was cut
    while thinking. Both parts lose the white space around them, as in SGLang's own parsers, so that a row does not
    tell which of the two made it; text without reasoning stays as it is.
    """
    before, marker, after = text.partition(END)
    thinks = opened or text.lstrip().startswith(START)
    if not thinks and (not marker or opened is False):
        return "", text
    return before.strip().removeprefix(START).strip(), after.strip()
