"""Whether a version of vLLM tells an adapter that was loaded anew from its namesake in the prefix cache.

The trap guarded against is stale answers: where the cache keys its blocks by an adapter's name, the same name with
other weights goes on with what the former ones computed.
"""

from __future__ import annotations

import re
from typing import Literal, assert_never


def refusal(policy: Literal["never", "safe", "always"], version: str | None) -> str:
    """Why a loaded adapter must not be replaced by another path, empty if it may."""
    match policy:
        case "never":
            return "policy.replace is never"
        case "always":
            return ""
        case "safe":
            keyed = keys_by_path(version)
            if keyed is None:
                return "the server tells no version that is known: what the former weights computed might be used on"
            if not keyed:
                return (
                    f"vLLM {version} keys its prefix cache by name: what the former weights computed would be used on"
                )
            return ""
        case _:
            assert_never(policy)


def keys_by_path(version: str | None) -> bool | None:
    """Whether this vLLM tells an adapter loaded anew from its namesake in the prefix cache; None if that is not known.

    To 0.11.0 it does by a number that is new with each load, from 0.31 on by the path (source of 0.7 to 0.33).
    """
    match = re.match(r"(\d+)\.(\d+)\.(\d+)(\S*)", version or "")
    if match is None:
        return None
    release = (int(match[1]), int(match[2]), int(match[3]))
    if release < (0, 7, 0):
        return None
    if release == (0, 31, 0) and re.match(r"\.?(a|b|rc|dev)", match[4]):
        return False
    return release < (0, 11, 1) or release >= (0, 31, 0)
