"""Reads JSON as `JSON.parse` does, from bytes that may be hostile."""

import functools
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import json

_LONGEST_INTEGER: Final = 20
"""Digits. A longer number is above 2^53, and int() refuses more than 4300 digits."""


class NotJsonError(ValueError):
    """JSON.parse would refuse the text."""


def _integer(text: str) -> int | float:
    return int(text) if len(text) <= _LONGEST_INTEGER else float("inf")


def _constant(text: str) -> Any:  # noqa: ANN401  # json's own signature
    raise NotJsonError(f"{text} is no JSON")


@functools.cache
def _decoder(*, long_integers: bool = False) -> "json.JSONDecoder":
    """Return a decoder. That of long integers is slower, because it calls Python for each integer.

    The import is here because most lock files need no JSON parser, and an empty directory never
    does.
    """
    from json import JSONDecoder  # noqa: PLC0415

    if long_integers:
        return JSONDecoder(parse_int=_integer, parse_constant=_constant)
    return JSONDecoder(parse_constant=_constant)


def loads(data: bytes) -> Any:  # noqa: ANN401  # any JSON value; callers check what they take
    """Return the value of `data`. Raises NotJsonError and no other error.

    Invalid UTF-8 becomes U+FFFD and a BOM is an error, as in Node. Unlike there, text that is
    nested deeper than Python's stack is refused.
    """
    text = data.decode("utf-8", errors="replace")
    start = len(text) - len(text.lstrip(" \t\r\n"))
    try:
        try:
            value, end = _decoder().raw_decode(text, start)
        except ValueError as error:
            if type(error) is not ValueError:  # JSONDecodeError, NotJsonError
                raise
            value, end = _decoder(long_integers=True).raw_decode(text, start)
    except (ValueError, RecursionError) as error:
        raise NotJsonError(str(error)) from None
    if text[end:].strip(" \t\r\n"):
        raise NotJsonError("text after the value")
    return value


def integer_or_none(value: object, *, minimum: int) -> int | None:
    """Return the value if it is an integer from `minimum` to 2^53, as JavaScript sees it.

    `true` is not a number, `7.0` is the integer 7.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not minimum <= value <= 2**53 or value != int(value):
        return None
    return int(value)
