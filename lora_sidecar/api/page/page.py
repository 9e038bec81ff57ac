"""The page at `/`: the status document for people, as one HTML file that needs nothing else.

Three traps are guarded against. Names come from whoever may load an adapter, so markup is made by `ops.html` alone and
the content policy lets nothing run but the one script whose hash it names. A script that draws its own version of the
truth comes to differ from it; so the script fetches this very page again and takes over what changed, and without it
the page is the same. And a page that
nobody closes costs a heartbeat's time; so an unchanged one is answered by its tag.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlencode

from lora_sidecar.api.document import Document
from lora_sidecar.api.page.html import Html, element, joined, verbatim
from lora_sidecar.api.page.sections import adapters, condition, events, server_card
from lora_sidecar.api.page.text import Mood, headline, seconds_between
from lora_sidecar.api.page.timeline import window_for
from lora_sidecar.api.query import PAGE_SIZE, Query

_ASSETS: Final = Path(__file__).parent
_STYLE: Final = (_ASSETS / "page.css").read_text("utf-8")
_SCRIPT: Final = (_ASSETS / "page.js").read_text("utf-8")

SIGNS: Final = {Mood.GOOD: "✓", Mood.BUSY: "↻", Mood.WARN: "!", Mood.BAD: "✕", Mood.IDLE: "…"}

_ICON_COLOURS: Final = {
    Mood.GOOD: "#30a46c",
    Mood.BUSY: "#5b83ee",
    Mood.WARN: "#e2a336",
    Mood.BAD: "#dc4b4b",
    Mood.IDLE: "#a8b1be",
}


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            f"style-src {_hash(_STYLE)}",
            f"script-src {_hash(_SCRIPT)}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'self'",
            "frame-ancestors 'none'",
        )
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def page(shown: Document, query: Query, window: str, tag: str) -> bytes:
    """The page of a document that was asked for with `query`.

    `window` is one of `timeline.WINDOWS`, or "" for one that shows everything; `tag` is the page's entity tag.
    """
    first = headline(shown)
    links = Links(query, window)
    window = window or window_for(seconds_between(shown.started, shown.at))
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="robots", content="noindex"),
        element("title", f"{SIGNS[first.mood]} {first.text} · lora-sidecar"),
        element("link", rel="icon", href=_icon(first.mood)),
        element("noscript", element("meta", http_equiv="refresh", content="15")),
        element("style", verbatim(_STYLE)),
    )
    body = element(
        "body",
        element("div", id="lost", role="alert", hidden=True),
        _top(shown),
        _main(shown, query, window, links),
        element("script", verbatim(_SCRIPT)),
    )
    html = element("html", head, body, lang="en", data_tag=tag, data_at=shown.at)
    return f"<!doctype html>\n{html.text}\n".encode()


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

    def to(self, **changes: str) -> str:
        """The address with these parameters changed; an empty one is left out."""
        wanted = {name: value for name, value in (self._given | changes).items() if value}
        return "?" + urlencode(wanted, errors="replace")

    def kept(self, *without: str) -> list[Html]:
        """Hidden fields for what a form has to keep."""
        kept = {name: value for name, value in self._given.items() if value and name not in without}
        return [element("input", type="hidden", name=name, value=value) for name, value in kept.items()]


def _icon(mood: Mood) -> str:
    circle = f'<circle cx="8" cy="8" r="7" fill="{_ICON_COLOURS[mood]}"/>'
    return "data:image/svg+xml," + quote(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">{circle}</svg>', safe="/:=\" <>'"
    ).replace('"', "'")


def _top(shown: Document) -> Html:
    ready = (
        element("span", "ready", class_="tag good") if shown.ready else element("span", "not ready", class_="tag bad")
    )
    as_of = element("span", f"as of {shown.at[11:19]} UTC", class_="asof")
    live = element("span", as_of, element("span", id="live"), class_="live")
    brand = element("div", "lora-sidecar ", element("span", shown.sidecar_version), class_="brand")
    return element("header", element("div", brand, ready, live, class_="bar wide"), id="top")


def _main(shown: Document, query: Query, window: str, links: Links) -> Html:
    first = headline(shown)
    sign = element("span", SIGNS[first.mood], class_=f"sign {first.mood.value}", aria_hidden="true")
    detail = element("p", first.detail) if first.detail else None
    title = element("div", element("h1", sign, element("span", first.text)), detail, class_="head", role="status")
    return element(
        "main",
        title,
        _not_ready(shown),
        [condition(held) for held in shown.conditions],
        [server_card(server, shown.at, window, links.to) for server in shown.servers],
        adapters(shown, query, links.to, joined(links.kept("q", "state", "server", "offset"))),
        events(shown),
        _foot(shown),
        id="main",
        class_="wide",
    )


def _not_ready(shown: Document) -> Html | None:
    lines = [line for line in shown.not_live if line not in shown.not_ready] + list(shown.not_ready)
    if not lines:
        return None
    return element(
        "div",
        element("b", "Not ready"),
        [element("p", line) for line in lines[:5]],
        element("p", f"and {len(lines) - 5} more: see /readyz") if len(lines) > 5 else None,  # noqa: PLR2004
        class_="note bad",
    )


def _foot(shown: Document) -> Html:
    paths = (("status", "JSON"), ("metrics", "metrics"), ("readyz?verbose", "readiness"), ("livez", "liveness"))
    return element(
        "footer",
        [element("a", text, href=path) for path, text in paths],
        element("span", f"config {shown.config_generation}, times in UTC"),
    )
