"""Requests from JSON, and from Python; an id may be an integer, which means its decimal text.

Types say that ids are texts, so that reading them costs no more. Only a request that does not fit is
looked at again, for integers where ids stand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from app.events import ID_BYTES

T = TypeVar("T")
IDS = frozenset(("user", "item", "id"))  # fields that hold an id
MANY = frozenset(("items", "exclude"))  # fields that hold many
NESTED = frozenset(("history", "events"))  # fields that hold structures with ids
_ENDLESS = 10**ID_BYTES  # longer than an id may be


def decoder(kind: type[T]) -> Callable[[bytes], T]:
    """A function that decodes a body of this type.

    It raises msgspec.DecodeError (of another shape: ValidationError), UnicodeDecodeError or RecursionError.
    """
    decode = msgspec.json.Decoder(kind).decode

    def decode_body(body: bytes) -> T:
        try:
            return decode(body)
        except msgspec.ValidationError as error:
            try:
                content = msgspec.json.decode(body)
            except (msgspec.DecodeError, RecursionError):  # the first error names the field
                raise error from None
            if (changed := with_text_ids(content)) is content:
                raise
        return msgspec.convert(changed, kind)

    return decode_body


def texted(request: T) -> T:
    """A request from Python with texts instead of integer ids; the same object where it has none.

    Raises:
        msgspec.ValidationError: it is not what its type says.
    """
    content = msgspec.to_builtins(request)
    changed = with_text_ids(content)
    return request if changed is content else msgspec.convert(changed, type(request))


def with_text_ids(content: Any) -> Any:
    """Plain data of a request with texts instead of integer ids; the same object where it has none."""
    if not isinstance(content, dict):
        return content
    changes = {
        name: changed for name, value in content.items() if (changed := _field(name, value)) is not value
    }
    return {**content, **changes} if changes else content


def _field(name: str, value: Any) -> Any:
    if name in IDS:
        return _text(value)
    if name in MANY:
        return _each(value, _text)
    return _each(value, with_text_ids) if name in NESTED else value


def _each(values: Any, change: Callable[[Any], Any]) -> Any:
    if not isinstance(values, list):
        return values
    changed = [change(value) for value in values]
    return values if all(new is old for new, old in zip(changed, values, strict=True)) else changed


def _text(value: Any) -> Any:
    # Not a bool, which is an int in Python; and Python refuses to write out an endless number.
    return str(value) if type(value) is int and abs(value) < _ENDLESS else value
