"""The page at `/`: the status document for people, as one HTML file that needs nothing else.

Three traps are guarded against. Names come from whoever may load an adapter, so the template escapes whatever it is
given, and the content policy lets nothing run but the one script whose hash it names. A script that draws its own
version of the truth comes to differ from it; so the script fetches this very page again and takes over what changed,
and without it the page is the same. And a page that nobody closes costs a heartbeat's time; so an unchanged one is
answered by its tag.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlencode

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from lora_sidecar.api.document import PAGE_SIZE, Document, Query
from lora_sidecar.api.page import cards, text
from lora_sidecar.api.page.text import Mood
from lora_sidecar.api.page.timeline import WIDTH, WINDOWS, window_for
from lora_sidecar.core.text import printable

SIGNS: Final = {Mood.GOOD: "✓", Mood.BUSY: "↻", Mood.WARN: "!", Mood.BAD: "✕", Mood.IDLE: "…"}

_ICON_COLOURS: Final = {
    Mood.GOOD: "#30a46c",
    Mood.BUSY: "#5b83ee",
    Mood.WARN: "#e2a336",
    Mood.BAD: "#dc4b4b",
    Mood.IDLE: "#a8b1be",
}

_LONGEST: Final = 8192
"""Characters of any one text, the longest of which are links with a query in them."""


class Page:
    """The page's template with its style and script: to read and compile them takes a tenth of a second."""

    def __init__(self) -> None:
        """Raises `OSError` where what was installed is not whole."""
        folder = Path(__file__).parent
        self._style = (folder / "page.css").read_text("utf-8")
        self._script = (folder / "page.js").read_text("utf-8")
        self._template = _template((folder / "page.html.j2").read_text("utf-8"))
        policy = (
            "default-src 'none'",
            f"style-src {_hash(self._style)}",
            f"script-src {_hash(self._script)}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'self'",
            "frame-ancestors 'none'",
        )
        self.headers: Final[Mapping[str, str]] = {
            "Content-Security-Policy": "; ".join(policy),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "no-cache",
        }

    def of(self, shown: Document, query: Query, window: str, tag: str) -> bytes:
        """The page of a document that was asked for with `query`.

        `window` is one of `timeline.WINDOWS`, or "" for one that shows everything; `tag` is the page's entity tag.
        """
        first = text.headline(shown)
        length = window or window_for(text.seconds_between(shown.started, shown.at))
        return self._template.render(
            shown=shown,
            query=query,
            window=length,
            tag=tag,
            first=first,
            icon=_icon(first.mood),
            links=Links(query, window),
            server_names={server.name: server.name for server in shown.servers},
            cards=[cards.card(server, shown.at, length) for server in shown.servers],
            problems=cards.problems(shown),
            title=cards.title(shown),
            style=Markup(self._style),  # noqa: S704 - our own file
            script=Markup(self._script),  # noqa: S704 - our own file
        ).encode()


class Links:
    """Addresses of this page with one thing changed."""

    def __init__(self, query: Query, window: str) -> None:
        """The page as it was asked for."""
        self._given = {
            "server": query.server,
            "state": query.state.value if query.state else "",
            "q": query.text,
            "offset": str(query.offset) if query.offset else "",
            "limit": str(query.limit) if query.limit != PAGE_SIZE else "",
            "window": window,
        }

    def to(self, **changes: object) -> str:
        """The address with these parameters changed; an empty one, or a 0, is left out."""
        wanted = {name: value for name, value in (self._given | changes).items() if value}
        return "?" + urlencode(wanted, errors="replace")

    def kept(self, *without: str) -> dict[str, str]:
        """What a form that asks for the others has to keep."""
        return {name: value for name, value in self._given.items() if value and name not in without}


def _template(source: str) -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, finalize=_finalize)
    environment.filters |= {
        "ago": text.ago,
        "clock": text.clock,
        "duration": text.duration,
        "how_long": text.how_long,
        "number": text.number,
        "mood_of": cards.mood_of,
        "printable": printable,
    }
    environment.globals |= {
        "condition_moods": text.CONDITIONS,
        "event_mood": text.event_mood,
        "signs": SIGNS,
        "state_names": text.NAMES,
        "line_width": WIDTH,
        "windows": WINDOWS,
        "problems_shown": cards.PROBLEMS_SHOWN,
    }
    # A text of spaces between two elements would be a node of its own, which the page's script takes for another.
    return environment.from_string("".join(line.strip() for line in source.splitlines()))


def _finalize(value: object) -> object:
    """What is put in for a value of the template, before it is escaped: no text has what cannot be sent or seen."""
    return printable(value, _LONGEST) if isinstance(value, str) and not isinstance(value, Markup) else value


def _hash(sent: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(sent.encode()).digest()).decode()}'"


def _icon(mood: Mood) -> str:
    circle = f'<circle cx="8" cy="8" r="7" fill="{_ICON_COLOURS[mood]}"/>'
    return "data:image/svg+xml," + quote(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">{circle}</svg>', safe="/:=\" <>'"
    ).replace('"', "'")
