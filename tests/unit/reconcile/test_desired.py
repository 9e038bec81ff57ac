from __future__ import annotations

import pytest
from msgspec.structs import replace

from lora_sidecar.core.events import EventName
from lora_sidecar.core.model import Adapter, Origin, Withdrawn
from lora_sidecar.core.observation import BaseModel
from lora_sidecar.core.paths import belongs_to, same_path
from lora_sidecar.reconcile.desired import declare
from tests.support.core import BASE, NOTHING, adapter, declared, desired

LEARNED, REQUESTED = adapter("l"), adapter("r", Origin.REQUESTED)


def test_declared_adapter_has_all_that_the_config_says() -> None:
    """Every key of the config reaches the adapter."""
    config = declared("a", path="org/a", required=True, priority=7, is_3d_lora_weight=True)
    after, facts = declare(NOTHING, [config])

    assert after.adapters == {
        "a": Adapter("a", "org/a", Origin.DECLARED, required=True, priority=7, is_3d_lora_weight=True)
    }
    assert [(f.event, f.fields) for f in facts] == [
        (EventName.ADAPTER_DECLARED, {"adapter": "a", "path": "org/a", "required": True, "priority": 7})
    ]


def test_same_config_again_is_the_very_same_desired() -> None:
    """A reload that changes no adapter changes nothing, and writes nothing."""
    before, _ = declare(desired(LEARNED), [declared("a"), declared("b")])
    after, facts = declare(before, [declared("b"), declared("a")])

    assert after is before
    assert facts == ()


def test_empty_config_releases_what_was_declared_and_nothing_else() -> None:
    """What others loaded or asked for is not the config's to take away."""
    before, _ = declare(desired(LEARNED, REQUESTED), [declared("a")])
    after, facts = declare(before, [])

    assert after.adapters == {"l": LEARNED, "r": REQUESTED}
    assert after.orphaned == {"a": "/adapters/a"}
    told = {"adapter": "a", "path": "/adapters/a", "reason": "removed from the config; it is not unloaded"}
    assert [(f.event, f.fields) for f in facts] == [(EventName.ADAPTER_ORPHANED, told)]


def test_config_takes_over_a_name_that_is_known_already() -> None:
    """The config is the last word on a name, whoever loaded it first."""
    after, _ = declare(desired(LEARNED), [declared("l", path="/new/l")])

    assert after.adapters["l"].origin is Origin.DECLARED
    assert (after.adapters["l"].path, after.adapters["l"].base) == ("/new/l", None)
    assert after.listed == {"l"}


def test_changed_adapter_is_told_and_the_others_are_not() -> None:
    """One changed line of a long config is one line in the log."""
    before, _ = declare(NOTHING, [declared("a"), declared("b")])
    after, facts = declare(before, [declared("a"), declared("b", priority=1)])

    assert [f.fields["adapter"] for f in facts] == ["b"]
    assert not after.orphaned


def test_release_outlasts_further_reloads() -> None:
    """A name that was released stays so while other adapters come and go."""
    one, _ = declare(NOTHING, [declared("a"), declared("b")])
    two, _ = declare(one, [declared("b")])
    three, _ = declare(two, [declared("c")])
    assert dict(three.orphaned) == {"a": "/adapters/a", "b": "/adapters/b"}
    four, _ = declare(three, [declared("a"), declared("c")])

    assert dict(four.orphaned) == {"b": "/adapters/b"}


def test_path_that_the_server_lists_for_a_declared_one_outlasts_a_reload() -> None:
    """What the server makes of a path is kept for as long as the config says the same path."""
    before = desired(adapter("a", Origin.DECLARED, listed_as="/real/a"))
    after, _ = declare(before, [declared("a", priority=1)])
    moved, _ = declare(after, [declared("a", path="/new/a")])

    assert declare(before, [declared("a")]) == (before, ())
    assert after.adapters["a"].listed_as == "/real/a"
    assert moved.adapters["a"].listed_as is None


def test_withdrawn_stays_so_whatever_path_the_server_listed_it_with() -> None:
    """A reload of the same entry does not bring back what was unloaded through the control port."""
    entry = adapter("a", Origin.DECLARED, listed_as="/real/a")
    before = replace(NOTHING, withdrawn={"a": Withdrawn(entry, pending=False)})

    assert declare(before, [declared("a")]) == (before, ())


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("/a", "/a", True),
        ("/a", "/a/", True),
        ("/a//", "/a", True),
        ("/a", "/A", False),
        ("/a", "/aX", False),
        ("/a", "/a/b", False),
        ("/a/b", "/a/./b", False),
        ("org/a", "org/a", True),
        ("", "/a", False),
    ],
)
def test_paths_are_compared_as_they_were_sent(one: str, other: str, same: bool) -> None:
    """Only a slash at the end is looked past: nothing else is known of the server's file system."""
    assert same_path(one, other) is same
    assert same_path(other, one) is same


@pytest.mark.parametrize(
    ("base", "same"), [(None, True), ("/models/base", True), ("base", True), ("/models/other", False), ("", False)]
)
def test_base_model_is_told_by_root_or_name(base: str | None, same: bool) -> None:
    """An adapter that belongs to no base model in particular belongs to each."""
    assert belongs_to(adapter("a", base=base), (BaseModel("other-name", "/elsewhere"), BASE)) is same
