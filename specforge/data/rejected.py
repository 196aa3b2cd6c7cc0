"""Why a row cannot be used."""


class RejectedRow(Exception):
    """A row that cannot be used: `reason` is a short code to count by, `detail` one sentence."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def kind(value: object) -> str:
    """What a value is, in words of JSON."""
    names = {
        dict: "an object",
        list: "a list",
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)
