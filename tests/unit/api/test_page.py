"""The page: nothing that a server or a config put into a text can be more than text in it."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from lora_sidecar.api.document import Query
from lora_sidecar.api.page.page import Page
from lora_sidecar.api.page.text import Headline, Mood, event_mood, headline
from lora_sidecar.api.status import document
from lora_sidecar.core.conditions import Condition, ConditionType
from lora_sidecar.reconcile.outage import Phase
from lora_sidecar.reconcile.verification import ProbeRecord
from lora_sidecar.status.adapters import AdapterState
from lora_sidecar.status.board import Board
from tests.support.snapshots import HOSTILE, a_board, a_status

_PAGE = Page()


class _Reader(HTMLParser):
    """Collects the elements, attributes and texts of a page."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def _shown(board: Board, query: Query | None = None, window: str = "", at: float = 52.0) -> str:
    query = query or Query()
    return _PAGE.of(document(board.snapshot(at, 30.0), query), query, window, '"tag"').decode()


def _read(text: str) -> _Reader:
    reader = _Reader()
    reader.feed(text)
    reader.close()
    return reader


def test_good_news_that_left_something_behind_is_a_warning() -> None:
    """A recovery is green where everything came back, and not where something failed."""
    assert event_mood("recovery.completed", "info") is Mood.GOOD
    assert event_mood("recovery.completed", "warning") is Mood.WARN
    assert event_mood("server.down", "warning") is Mood.BAD
    assert event_mood("adapter.adopted", "info") is Mood.IDLE


def _headline(**status: Any) -> Headline:
    return headline(document(a_board(**status).snapshot(52.0, 30.0), Query()))


def test_headline_is_about_what_is_worst() -> None:
    """A wedged server before one that is down, adapters that do not work before a pause, and it before what waits."""
    wedged = Condition(ConditionType.SERVER_WEDGED, "it refuses connections")
    paused = Condition(ConditionType.PAUSED, "nothing is loaded or unloaded: maintenance")
    all_of_it: dict[str, Any] = {"adapters": ("a", "b"), "listed": ("a",), "conditions": (paused,)}
    assert _headline(**all_of_it, phase=Phase.DOWN).text == "vllm is down"
    found = _headline(**{**all_of_it, "conditions": (paused, wedged)}, phase=Phase.DOWN)
    assert (found.mood, found.text) == (Mood.BAD, "vllm is wedged: its container should be ended")
    dead = {"a": ProbeRecord("/adapters/a", dead=2, why="timeout")}
    assert _headline(**all_of_it, trials=dead).text == "1 adapter is listed and does not work"
    assert _headline(**all_of_it).detail == "nothing is loaded or unloaded: maintenance"
    assert _headline(adapters=("a",), listed=("a",), withdrawn=("b",)).text == "The adapter is listed"


def test_what_is_withdrawn_dead_or_in_danger_is_on_the_page() -> None:
    """Each with its state, its reason and its mark, in the same words as in the document."""
    dead = {"a": ProbeRecord("/adapters/a", dead=2, why="timeout"), "b": ProbeRecord("/adapters/b", probes=1)}
    text = _shown(a_board(adapters=("a", "b"), listed=("a", "b"), trials=dead, withdrawn=("gone",)))
    assert '<span class="tag bad">dead</span>' in text
    assert "it gives no answer while the base model does: timeout" in text
    assert '<span class="tag small good">proven</span>' in text
    assert '<span class="tag idle">withdrawn</span>' in text
    assert "unloaded by request" in text


def test_hostile_texts_add_no_element_and_no_attribute() -> None:
    """A page of bad names has the kinds of elements and attributes that a page of good names has, and no others."""
    good = _read(_shown(a_board(adapters=("a", "b"), listed=("a",), failing=("b",), required=("a",))))
    bad = _read(_shown(a_board(hostile=True), Query(text="")))
    assert set(bad.tags) - set(good.tags) <= {"p", "div", "b"}
    assert bad.tags.count("script") == 1
    assert bad.tags.count("style") == 1
    assert not [name for name, _ in bad.attributes if name.startswith("on") or name == "style"]
    assert not [value for name, value in bad.attributes if name in ("href", "src") and "javascript" in (value or "")]
    assert "img" not in bad.tags


def test_hostile_query_is_only_text() -> None:
    """What stands in the address comes back as the value of a field, and nothing else."""
    shown = _read(_shown(a_board(adapters=("a",), listed=("a",)), Query(text=HOSTILE[1], server=HOSTILE[0])))
    assert ("value", HOSTILE[1]) in shown.attributes
    assert shown.tags.count("script") == 1
    assert "img" not in shown.tags


def test_names_are_shown_whole_where_they_can_be() -> None:
    """A name of ordinary characters, in any script, is shown as it is."""
    names = ("sql-assistant", "R&D <beta>", "\u05e9\u05dc\u05d5\u05dd", "日本語")
    texts = _read(_shown(a_board(adapters=names, listed=names))).texts
    assert set(names) <= set(texts)


def test_characters_that_steer_a_display_are_replaced() -> None:
    """Controls and marks that turn the direction of text are shown as what they are: something that does not print."""
    text = _shown(a_board(hostile=True), Query(limit=1000))
    assert not re.search("[\x00-\x09\x0b-\x1f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text.split("</style>")[1])


def test_name_without_end_does_not_make_a_page_without_end() -> None:
    """200 kB in every text leave the page of a size that a phone can take."""
    assert len(_shown(a_board(hostile=True), Query(limit=1000))) < 100_000


def test_content_policy_names_the_one_script_and_the_one_style() -> None:
    """The hashes in the header are those of what is sent, and nothing inline is allowed besides."""
    text = _shown(a_board())
    policy = _PAGE.headers["Content-Security-Policy"]
    for tag in ("script", "style"):
        sent = re.search(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert sent is not None
        digest = base64.b64encode(hashlib.sha256(sent[1].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy


def test_page_needs_nothing_from_elsewhere() -> None:
    """No address in it leads to another place."""
    text = _shown(a_board(adapters=("a",)))
    leads = re.findall(r'(?:href|src|action)="([^"]*)"', text)
    assert leads
    assert not [one for one in leads if one.startswith(("http", "//")) or (":" in one and not one.startswith("data:"))]


@pytest.mark.parametrize("state", AdapterState)
def test_filter_by_state_shows_these_alone(state: AdapterState) -> None:
    """Whatever is asked for, the count over the list is that of the list."""
    board = a_board(adapters=("a", "b", "c"), listed=("a",), failing=("b",))
    items = document(board.snapshot(52.0, 30.0), Query(state=state)).adapters.items
    assert {one.state for one in items} <= {state.value}
    assert _shown(board, Query(state=state)).count("<tr>") == (len(items) + 1 if items else 0)


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        ({"adapters": ("a",), "listed": ("a",)}, "The adapter is listed"),
        ({"adapters": ("a", "b"), "listed": ("a", "b")}, "All 2 adapters are listed"),
        ({"adapters": ("a", "b"), "listed": ("a",)}, "Restoring 1 adapter"),
        ({"adapters": ("a", "b"), "listed": ("a",), "failing": ("b",)}, "1 adapter is failing to load"),
        ({"adapters": ("a",), "phase": Phase.DOWN}, "vllm is down"),
        ({"adapters": ("a",), "phase": Phase.UNKNOWN}, "vllm gives no answer that can be trusted"),
        ({"adapters": ("a",), "phase": Phase.STARTING}, "vllm has not answered yet"),
        ({}, "Nothing to keep yet"),
    ],
)
def test_first_sentence_says_what_is_worst(status: dict[str, Any], sentence: str) -> None:
    """A glance is enough: the title and the heading say it."""
    text = _shown(a_board(**status))
    assert re.search(f"<title>. {sentence} · lora-sidecar</title>", text)


def test_server_that_is_away_is_never_shown_as_listing() -> None:
    """Unknown is neither listed nor zero of so many."""
    text = _shown(a_board(adapters=("a",), listed=("a",), phase=Phase.DOWN, detail="refused"))
    assert "1 adapter, not known to be listed" in text
    assert ">listed</span>" not in text


def test_outage_shorter_than_a_pixel_is_seen() -> None:
    """One second in a day has a place on the line of its own, and stands in the list below it."""
    board = a_board(adapters=("a",), listed=("a",))
    board.publish(a_status(phase=Phase.DOWN, at=60_000.0, detail="it was killed"))
    board.publish(a_status(adapters=("a",), listed=("a",), at=60_001.0, number=2))
    text = _shown(board, window="24h", at=60_002.0)
    found = re.search(r'class="t-down" x="[\d.]+" y="0" width="([\d.]+)"', text)
    assert found is not None
    assert float(found[1]) >= 5
    assert "it was killed" in text
