"""Keys of rank_pattern and alpha_pattern: regular expressions that match layers, as in PEFT."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


def pattern_key(patterns: Mapping[str, Any], module: str) -> str | None:
    """The first key of a rank_pattern or alpha_pattern that matches `module`, as in PEFT.

    Each key is a regular expression that must match the whole module name, or its end after a dot.
    Raises re.error for an invalid regular expression.
    """
    for key in patterns:
        if re.match(rf"(.*\.)?({key})$", module):
            return key
    # PEFT then looks up the full name literally, which finds keys with regex characters in them.
    return module if module in patterns else None


def is_quick(key: str) -> bool:
    """Whether the matching time of a regular expression grows slowly with the name's length.

    Python tries all ways to split a name among repeated parts: for consecutive repeats the numbers
    multiply, for nested repeats they grow exponentially.
    """
    if len(key) > 512:
        return False
    repeats, open_groups, in_class, i = 0, [False], False, 0
    while i < len(key):
        one = key[i]
        if one == "\\":
            i += 1
        elif in_class:
            in_class = one != "]"
        elif one == "[":
            in_class = True
        elif one == "(":
            open_groups.append(False)
        elif one == ")":
            has_repeats = open_groups.pop() if len(open_groups) > 1 else False
            if has_repeats and key[i + 1 : i + 2] in ("*", "+", "{"):
                return False
            open_groups[-1] |= has_repeats
        elif one in "*+?{" and key[i - 1 : i] not in ("(", "*", "+"):
            repeats += one in "*+{"
            open_groups[-1] = True
        elif one == "|":
            open_groups[-1] |= len(open_groups) > 1
        i += 1
    return repeats <= 2
