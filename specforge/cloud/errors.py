"""What Modal's client raises, in one sentence that says what to do."""

import re
import socket
import ssl

from modal import exception as raised

from specforge.errors import UserError

SECRETS = {
    "huggingface-secret": "HF_TOKEN",
    "wandb-secret": "WANDB_API_KEY",
}
PASSING = (
    raised.ConnectionError, raised.ServiceError, raised.InternalError, raised.ClientClosed, ConnectionError,
    socket.gaierror, ssl.SSLError,
)  # fmt: skip
"""Troubles of the connection, which say nothing of the call at its other end."""

SENTENCES = (
    (raised.OutputExpiredError, "Modal keeps an answer for a week, and this one is older ({})."),
    (
        raised.AuthError,
        "Modal refused the token, or there is none ({}); run `modal setup`, or set MODAL_TOKEN_ID and "
        "MODAL_TOKEN_SECRET.",
    ),
    (
        raised.ResourceExhaustedError,
        "Modal's quota is used up ({}); wait, lower `--resources modal_runs=`, or ask Modal to raise it.",
    ),
    (
        raised.PermissionDeniedError,
        "this account may not do that ({}); check the token's workspace and modal.environment.",
    ),
    (
        raised.ImageBuildError,
        "the image could not be built ({}); the build's log is above and on Modal's page of the app.",
    ),
    (
        raised.FunctionTimeoutError,
        "every attempt ran into its timeout; what was saved is on the volume, so the same command goes on from there. "
        "Raise modal.timeout_hours (24 at most) or modal.retries to need fewer commands.",
    ),
    (
        raised.InvalidError,
        "{}; the volumes of this app are version 2, so copy the old one's files and delete or rename it.",
    ),
    (PASSING, "Modal cannot be reached ({}); nothing that runs is lost, so type the same command again."),
)

OUT_OF_MEMORY = 137  # exit status of a container that the kernel killed


def explain(error: BaseException, doing: str) -> UserError:
    """The sentence for what Modal raised while `doing`."""
    text = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"{doing}: {_sentence(error, text)}")


def _sentence(error: BaseException, text: str) -> str:
    if isinstance(error, raised.NotFoundError):
        return _missing(text)
    if isinstance(error, raised.RemoteError) and not isinstance(error, raised.ImageBuildError):
        return _lost(text)
    if isinstance(error, raised.InvalidError) and not ("olume" in text and "version" in text):
        return f"{type(error).__name__}: {text}"
    for kind, sentence in SENTENCES:
        if isinstance(error, kind):
            return sentence.format(text)
    if isinstance(error, OSError):
        return f"this machine says {text}; mend that and type the same command again."
    return f"{type(error).__name__}: {text}"


def _missing(text: str) -> str:
    if match := re.search(r"Secret '?([\w.-]+)'?", text):
        name = match[1]
        return (
            f"the secret {name!r} is missing; make it with `modal secret create {name} {SECRETS.get(name, 'KEY')}=...`."
        )
    if "nvironment" in text and not re.search(r"(App|Function|Volume) '", text):
        return f"modal.environment names none of this workspace ({text}); see `modal environment list`."
    return f"{text}; type the same command again, which deploys the app anew."


def _lost(text: str) -> str:
    if "cancel" in text.lower() or "terminated" in text.lower():
        return f"it was cancelled ({text}); the same command starts it anew from its last saved step."
    if re.search(rf"\b{OUT_OF_MEMORY}\b", text) or "memory" in text.lower():
        return (
            f"the container ran out of memory ({text}); lower train.micro_tokens or regenerate.batch_size, or choose a "
            "machine with more by `gpu`."
        )
    return f"the container was lost on every attempt ({text}); the same command goes on from what it saved."
