"""Learning rates: however they are written, one run and one path each."""

from decimal import Decimal, InvalidOperation


def rate_tag(value: object) -> str:
    """The one spelling of a rate, such as `5e-5`, for 5e-5, "5.0e-5" or 0.00005.

    Raises ValueError when `value` is not a positive finite number.
    """
    try:
        rate = Decimal(str(value)) if not isinstance(value, bool) else None
    except InvalidOperation:
        rate = None
    if rate is None or not rate.is_finite() or rate <= 0:
        raise ValueError(f"learning rate {value!r} must be a positive number such as 5e-5")
    _sign, digits, exponent = rate.normalize().as_tuple()
    mantissa = "".join(map(str, digits))
    power = exponent + len(mantissa) - 1
    point = f".{mantissa[1:]}" if len(mantissa) > 1 else ""
    return f"{mantissa[0]}{point}e{power}"


RATE_PATTERN = r"[1-9](\.\d*[1-9])?e-?\d+"
