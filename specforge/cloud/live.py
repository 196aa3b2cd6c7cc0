"""Whether a call goes on, asked of Modal."""

from specforge.cloud.errors import PASSING, explain


def is_live(call: str) -> bool:
    """True for one that runs or waits to. Raises UserError when Modal cannot be asked."""
    import modal
    from modal import exception as raised

    try:
        modal.FunctionCall.from_id(call).get(timeout=0)
    except (raised.OutputExpiredError, raised.FunctionTimeoutError):
        return False
    except (TimeoutError, raised.TimeoutError):
        return True
    except (raised.AuthError, *PASSING) as error:
        raise explain(error, f"asking after call {call}") from error
    except Exception:  # what a failed call raises: it is over, however it ended
        return False
    return False
