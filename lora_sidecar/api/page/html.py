"""HTML that cannot be left unescaped: elements are built from values, and a text is always a text.

The trap guarded against is markup put together from strings, where one forgotten call lets a name that a client chose
become a script. Here a `str` is escaped wherever it stands, and only an `Html` made by these functions is not.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Final

from msgspec import Struct


class Html(Struct, frozen=True):
    """Markup that is fit to be sent."""

    text: str


Child = Html | str | Sequence[Html | str] | None
Value = str | int | float | bool | None

_VOID: Final = frozenset({"meta", "link", "input", "br"})


def element(tag: str, *children: Child, **attributes: Value) -> Html:
    """An element; an attribute that is None or False is left out, True stands without a value.

    In names of attributes a trailing underscore is dropped and others become hyphens: `class_`, `data_at`.
    """
    opened = [tag]
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        name = name.rstrip("_").replace("_", "-")  # noqa: PLW2901 - the name as HTML has it
        opened.append(name if value is True else f'{name}="{_escaped(str(value))}"')
    start = f"<{' '.join(opened)}>"
    if tag in _VOID:
        return Html(start)
    return Html(f"{start}{joined(*children).text}</{tag}>")


def joined(*children: Child) -> Html:
    """Several children as one piece."""
    return Html("".join(map(_child, children)))


def _child(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Html):
        return child.text
    if isinstance(child, str):
        return _escaped(child)
    return "".join(map(_child, child))


def _escaped(text: str) -> str:
    # Half a surrogate pair cannot be sent in UTF-8; NUL and other controls have no place in HTML.
    sound = text.encode("utf-8", "replace").decode()
    return html.escape("".join(c if c.isprintable() or c == " " else "\ufffd" for c in sound))


def verbatim(text: str) -> Html:
    """A text of this program's own that is sent as it is: a style sheet or a script."""
    return Html(text)
