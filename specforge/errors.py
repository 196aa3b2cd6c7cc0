"""Errors that are the user's to mend."""


class UserError(Exception):
    """One sentence: what is wrong, where (file, line, key), what to do. Shown without a traceback."""
