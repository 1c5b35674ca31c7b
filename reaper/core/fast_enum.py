"""The enums of the core, without the Python functions that `Enum` calls for each use."""

from enum import Enum
from operator import attrgetter
from typing import TYPE_CHECKING


class FastEnum(Enum):
    """An enum whose members hash by identity, and whose `name` and `value` are plain lookups.

    `Enum` calls a Python function for each of these, some fifteen times for each lock. Members are
    equal only to themselves, so both hashes agree with equality.
    """

    __hash__ = object.__hash__
    if not TYPE_CHECKING:  # mypy knows the types of both from `Enum`
        name = property(attrgetter("_name_"))
        value = property(attrgetter("_value_"))
