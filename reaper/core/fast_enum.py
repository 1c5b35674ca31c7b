"""The enums of the core, without Python's cost for a set or dictionary of their members."""

from enum import Enum


class FastEnum(Enum):
    """An enum whose members hash by identity: `Enum` calls a Python function for each hash, ten
    times for each lock. Members are equal only to themselves, so both hashes agree with equality.
    """

    __hash__ = object.__hash__
