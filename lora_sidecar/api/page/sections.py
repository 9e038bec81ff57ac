"""The parts of the page: a server with its line, the adapters, the events. Each says in words what it shows in colour.

The trap guarded against is a page that only its author can read: nothing is told by colour or place alone, every time
has its date behind it, and a list that was cut says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from lora_sidecar.api.document import (
    AdapterView,
    ConditionView,
    Document,
    EventView,
    RecoveryView,
    ServerView,
    SpanView,
)
from lora_sidecar.api.page.html import Html, element, joined
from lora_sidecar.api.page.text import (
    CONDITIONS,
    NAMES,
    PHASES,
    STATES,
    Mood,
    ago,
    clock,
    duration,
    event_mood,
    number,
    seconds_between,
    share,
)
from lora_sidecar.api.page.timeline import WINDOWS, drawn
from lora_sidecar.api.query import Query
from lora_sidecar.reconcile.outage import Phase
from lora_sidecar.status.adapters import AdapterState
from lora_sidecar.status.history import truncate

Link = Callable[..., str]

NAME_SHOWN: Final = 256
PATH_SHOWN: Final = 300
LIVES_SHOWN: Final = 12
EVENTS_SHOWN: Final = 20
_DAYS: Final = 172_800


def since(date: str, now: str, *, how_long: bool = False) -> Html:
    """A time as how long ago it was, with the date behind it."""
    text = duration(float(int(seconds_between(date, now)))).replace(".0 s", " s") if how_long else ago(date, now)
    return element("time", text, datetime=date, title=date, data_ago="for" if how_long else "ago", class_="nowrap")


def server_card(server: ServerView, now: str, window: str, link: Link) -> Html:
    """One server: how it is, its lives and absences, what holds, and a few figures."""
    mood, word = PHASES[server.phase]
    listed, total = share(server)
    counted = f"{listed:,} of {number(total, 'adapter')} listed" if total else "no adapters"
    if server.phase != Phase.UP.value and total:
        counted = f"{number(total, 'adapter')}, not known to be listed"
    title = element(
        "div",
        element("h2", server.name),
        element("span", word, class_=f"tag {mood.value}"),
        element("span", "for ", since(server.since, now, how_long=True), class_="soft"),
        element("span", counted, class_="right"),
        class_="title",
    )
    return element(
        "section",
        title,
        element("p", element("span", server.detail, class_="mono"), class_="why") if server.detail else None,
        element("p", server.hint, class_="why soft") if server.hint else None,
        [condition(held) for held in server.conditions],
        drawn(server, now, window),
        _axis(window),
        _legend(window, link),
        _lives(server, now),
        _facts(server, now),
        class_="card",
        aria_label=f"server {server.name}",
    )


def condition(held: ConditionView) -> Html:
    """A condition that holds, and what to do about it."""
    hint = element("p", held.hint, class_="hint") if held.hint else None
    mood = CONDITIONS.get(held.type, Mood.WARN)
    return element("div", element("b", held.type), element("p", held.message), hint, class_=f"note {mood.value}")


def _axis(window: str) -> Html:
    length = WINDOWS[window]
    return element(
        "div",
        element("span", f"{duration(length)} ago"),
        element("span", f"{duration(length / 2)} ago") if length < _DAYS else None,
        element("span", "now"),
        class_="axis",
        aria_hidden="true",
    )


def _legend(window: str, link: Link) -> Html:
    keys = (
        ("up", "up"),
        ("down", "down"),
        ("unknown", "unknown"),
        ("starting", "not seen yet"),
        ("recovery", "recovery"),
    )
    chosen = [
        element("a", name, href=link(window=name), aria_current="true" if name == window else None) for name in WINDOWS
    ]
    return element(
        "div",
        [element("span", text, class_=f"key {kind}") for kind, text in keys],
        element("nav", chosen, class_="windows", aria_label="length of the line"),
        class_="under",
    )


def _lives(server: ServerView, now: str) -> Html:
    """The line in words, newest first: every life and absence, and what each recovery came to."""
    told = [(span.began, _span(span, now)) for span in server.timeline]
    told += [(one.began, _recovery(one, now)) for one in server.recoveries]
    told.sort(key=lambda pair: pair[0], reverse=True)
    absences = sum(span.phase == Phase.DOWN.value for span in server.timeline)
    recoveries = number(len(server.recoveries), "recovery", "recoveries")
    cut = len(told) - LIVES_SHOWN
    rest = element("li", element("span"), element("span", f"and {cut} earlier: see /status", class_="soft"))
    return element(
        "details",
        element("summary", f"Life {server.incarnation}, {number(absences, 'outage')}, {recoveries}"),
        element("ul", [item for _, item in told[:LIVES_SHOWN]], rest if cut > 0 else None, class_="lives"),
    )


def _span(span: SpanView, now: str) -> Html:
    names = {
        Phase.UP.value: f"up, life {span.incarnation}",
        Phase.DOWN.value: "down",
        Phase.UNKNOWN.value: "unknown",
        Phase.STARTING.value: "not seen yet",
    }
    reason = "" if span.phase == Phase.UP.value or not span.reason else f": {span.reason}"
    lasted = f" {duration(span.seconds)}" + ("" if span.ended else " so far")
    return _told(span.began, now, PHASES[span.phase][0].value, names[span.phase], f"{lasted}{reason}")


def _recovery(one: RecoveryView, now: str) -> Html:
    if one.ended is None:
        return _told(one.began, now, "busy", "recovery", f" under way: {number(one.lost, 'adapter')} lost")
    failed = f", {one.failed} failed" if one.failed else ""
    away = "" if one.outage_seconds is None else f"; {duration(one.outage_seconds)} without a good answer before it"
    came = f": {one.restored} of {number(one.lost, 'adapter')} restored{failed}"
    return _told(
        one.began, now, "warn" if one.failed else "busy", "recovery", f" in {duration(one.seconds)}{came}{away}"
    )


def _told(began: str, now: str, mood: str, what: str, text: str) -> Html:
    when = element("time", clock(began, now), datetime=began, title=began, class_="soft mono")
    return element("li", when, element("span", element("span", what, class_=f"tag small {mood}"), text))


def _facts(server: ServerView, now: str) -> Html:
    beat = (
        joined(since(server.heartbeat_ended, now), f", took {server.heartbeat_seconds * 1000:.0f} ms")
        if server.heartbeat_ended
        else "none yet"
    )
    pairs: list[tuple[str, Html | str]] = [
        ("Heartbeat", beat),
        ("Last good answer", since(server.last_good, now) if server.last_good else "none yet"),
        ("Checkpoint", f"generation {server.checkpoint_generation}" if server.checkpoint_generation else "none yet"),
    ]
    return element(
        "dl", [element("div", element("dt", name), element("dd", value)) for name, value in pairs], class_="facts"
    )


def adapters(shown: Document, query: Query, link: Link, kept: Html) -> Html:
    """The page of adapters that was asked for, with the means to ask for another; `kept` are fields of the form."""
    several = len(shown.servers) > 1
    return element(
        "section",
        element("div", element("h2", _adapters_title(shown)), _filter(shown, query, kept), class_="tools"),
        element("div", _table(shown, several=several), class_="card flush"),
        _pages(shown, link),
        aria_label="adapters",
    )


def _adapters_title(shown: Document) -> str:
    page = shown.adapters
    title = number(page.total, "adapter")
    return title if page.matching == page.total else f"{page.matching:,} of {title}"


def _filter(shown: Document, query: Query, kept: Html) -> Html | None:
    if not shown.adapters.total:
        return None
    states = [("", "any state"), *NAMES.items()]
    servers = [("", "any server"), *((server.name, server.name) for server in shown.servers)]
    state = query.state.value if query.state else ""
    return element(
        "form",
        kept,
        element(
            "input", type="search", name="q", value=query.text, placeholder="Name or path", aria_label="name or path"
        ),
        _choice("server", "server", servers, query.server) if len(shown.servers) > 1 else None,
        _choice("state", "state", states, state),
        element("button", "Filter", type="submit"),
        method="get",
        role="search",
    )


def _choice(name: str, label: str, options: Iterable[tuple[str, str]], chosen: str) -> Html:
    found = [element("option", text, value=value, selected=value == chosen) for value, text in options]
    return element("select", found, name=name, aria_label=label)


def _table(shown: Document, *, several: bool) -> Html:
    if not shown.adapters.items:
        text = "No adapter matches." if shown.adapters.total else "No adapters are known: none is declared or loaded."
        return element("p", text, class_="empty")
    names = ("State", "Adapter", "Path", *(("Server",) if several else ()), "Origin", "Since")
    rows = [_row(one, shown.at, several=several) for one in shown.adapters.items]
    head = element("thead", element("tr", [element("th", name, scope="col") for name in names]))
    return element("table", head, element("tbody", rows))


def _row(one: AdapterView, now: str, *, several: bool) -> Html:
    marks: list[Html | str] = []
    for mark, mood in (("required", "idle"), ("proven", "good")):
        if (mark == "required" and one.required) or (mark == "proven" and one.proven):
            marks += [" ", element("span", mark, class_=f"tag small {mood}")]
    reason = element("span", one.reason, class_="reason") if one.reason else None
    # What is listed and has something to say of itself is in danger.
    mood = Mood.WARN if one.state == AdapterState.LISTED.value and one.reason else STATES[one.state]
    return element(
        "tr",
        element("td", element("span", NAMES[one.state], class_=f"tag {mood.value}"), class_="state"),
        element("td", element("bdi", truncate(one.name, NAME_SHOWN)), marks, reason, class_="name"),
        element("td", element("bdi", truncate(one.path or "", PATH_SHOWN), class_="mono"), class_="path"),
        element("td", one.server, class_="server") if several else None,
        element("td", one.origin or "", class_="origin"),
        element("td", since(one.since, now) if one.since else "", class_="since soft"),
    )


def _pages(shown: Document, link: Link) -> Html | None:
    page = shown.adapters
    last = page.offset + len(page.items)
    if page.matching <= page.limit and not page.offset:
        return None
    back, on = page.offset - page.limit, page.offset + page.limit
    return element(
        "nav",
        element("a", "← previous", href=link(offset=str(back) if back > 0 else ""), rel="prev")
        if page.offset
        else element("span"),
        element("span", f"{page.offset + 1:,} to {last:,} of {page.matching:,}" if page.items else "past the end"),
        element("a", "next →", href=link(offset=str(on)), rel="next") if last < page.matching else element("span"),
        class_="pages",
        aria_label="pages of adapters",
    )


def events(shown: Document) -> Html:
    """The last events, newest first."""
    several = len(shown.servers) > 1
    items = [_event(one, shown.at, several=several) for one in reversed(shown.events)]
    listing = [
        element("ol", items[:EVENTS_SHOWN], class_="events")
        if items
        else element("p", "Nothing has happened yet.", class_="empty")
    ]
    if earlier := items[EVENTS_SHOWN:]:
        summary = element("summary", number(len(earlier), "earlier event"))
        listing.append(element("details", summary, element("ol", earlier, class_="events"), class_="more"))
    return element(
        "section",
        element("div", element("h2", "Last events"), class_="tools"),
        element("div", listing, class_="card flush"),
        aria_label="last events",
    )


def _event(one: EventView, now: str, *, several: bool) -> Html:
    when = element("time", clock(one.at, now), datetime=one.at, title=one.at, class_="when soft mono nowrap")
    whose = f"{one.server}: " if several and one.server else ""
    times: list[Html | str] | None = (
        [" ", element("span", f"{one.count:,} times", class_="tag small idle")] if one.count > 1 else None
    )
    return element(
        "li",
        when,
        element("span", one.event, class_="what"),
        element("bdi", f"{whose}{one.text}", times, class_="text"),
        class_=event_mood(one.event, one.level).value,
    )
