"""What manifests say, as plain values, and how to look into them without being sure of their shape.

The trap guarded against is a manifest that is not what it should be: a list where a mapping is due is nothing to look
into, and no reason to crash. The API server refuses it in its own words.
"""

from __future__ import annotations

Value = None | bool | int | str | list["Value"] | dict[str, "Value"]
"""What a node says. Scalars that were read are texts or None; values to be written may have numbers and booleans."""
Path = tuple[str | int, ...]
"""Keys and indices that lead from a value to one inside it."""


def walk(value: Value, path: Path) -> Value:
    """Return the value at a path, or None where there is none."""
    for step in path:
        if isinstance(value, dict) and isinstance(step, str):
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
        else:
            return None
    return value


def mapping(value: Value) -> dict[str, Value]:
    """Return a mapping as it is, and anything else as an empty one."""
    return value if isinstance(value, dict) else {}


def entries(value: Value) -> list[dict[str, Value]]:
    """Return the mappings of a list, in their order; anything else has none."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def text(value: Value) -> str:
    """Return a text as it is, and anything else as an empty one."""
    return value if isinstance(value, str) else ""
