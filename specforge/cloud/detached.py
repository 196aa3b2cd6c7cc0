"""How a script leaves a call that goes on without it."""


class Detached(SystemExit):
    """Ctrl-C or SIGTERM came while a call was waited for; the call goes on."""
