from __future__ import annotations

import pytest
from msgspec.structs import replace

from lora_sidecar.config.settings import BackoffConfig
from lora_sidecar.core.events import EventName, Level
from lora_sidecar.core.model import Origin, Suspect
from lora_sidecar.core.observation import Files, Sight
from lora_sidecar.core.outcomes import Looked
from lora_sidecar.reconcile.guard import defuse, hold_back
from lora_sidecar.reconcile.missing_files import (
    clear_changed,
    gone_before_load,
    missing_files,
    pardon_changed,
    to_unload,
)
from lora_sidecar.reconcile.state import Attempt, Blocked, BlockReason, CapacityEstimate, QuarantineTimer, State
from tests.support.core import BASE, adapter, card, desired, failure, observed

RULE = BackoffConfig()
HERE = Files(Sight.PRESENT, "now")
GONE = Files(Sight.GONE, looks=2, seen_before=True)
LISTED = {"a": "/one/a", "b": "/one/b", "c": "/two/c"}


def test_a_folder_that_is_gone_is_a_bomb() -> None:
    """Seen before on its device, missed twice, alone or with a whole sibling."""
    assert to_unload(LISTED, {"/one/a": GONE}) == {"a": "/one/a"}
    assert to_unload(LISTED, {"/one/a": GONE, "/two/c": GONE}) == {"a": "/one/a", "c": "/two/c"}
    assert to_unload(LISTED, {"/one/a": GONE, "/one/b": GONE, "/one/x": HERE}) == {"a": "/one/a", "b": "/one/b"}


@pytest.mark.parametrize(
    "look",
    [
        HERE,
        replace(GONE, looks=1),
        replace(GONE, seen_before=False),
        replace(GONE, sight=Sight.SPOILT),
        replace(GONE, sight=Sight.UNSEEN),
    ],
)
def test_a_doubt_keeps_an_adapter_loaded(look: Files) -> None:
    """And lets a load of it be tried."""
    assert to_unload(LISTED, {"/one/a": look}) == {}
    assert gone_before_load({"a": adapter("a")}, {"/adapters/a": look}) == {}


def test_a_volume_that_is_away_unloads_nothing() -> None:
    """Two neighbours that vanish together, and nothing whole beside them; a whole folder elsewhere says nothing."""
    files = {"/one/a": GONE, "/one/b": GONE, "/two/c": HERE}

    assert to_unload(LISTED, files) == {}
    assert to_unload(LISTED, files | {"/two/c": GONE}) == {"c": "/two/c"}
    assert to_unload({"a": "/one/a/", "b": "/one/b/"}, {"/one/a/": GONE, "/one/b/": GONE}) == {}
    apart = {"a": "/one/X", "b": "/two/X"}
    assert to_unload(apart, {"/one/X": GONE, "/two/X": GONE}) == apart


def test_a_missing_adapter_without_files_is_not_sent() -> None:
    """Others are."""
    missing = {"a": adapter("a"), "b": adapter("b")}

    assert gone_before_load(missing, {"/adapters/a": GONE, "/adapters/b": HERE}) == {"a": "/adapters/a is gone"}
    assert gone_before_load(missing, {}) == {}


def test_listed_adapters_with_bad_files_are_named() -> None:
    """From the second look on, with what is wrong."""
    spoilt = Files(Sight.SPOILT, looks=2, why="half a header")

    assert missing_files(LISTED, {"/one/a": GONE, "/one/b": spoilt, "/two/c": HERE}) == {
        "a": "/one/a is gone",
        "b": "/one/b could not be loaded again: half a header",
    }
    once = {"/one/a": replace(GONE, looks=1), "/one/b": replace(spoilt, looks=1), "/two/c": GONE}
    assert missing_files(LISTED, once) == {"c": "/two/c is gone"}
    assert missing_files(LISTED, {"/two/c": replace(GONE, sight=Sight.UNSEEN)}) == {}


def test_what_is_unloaded_for_its_files_is_ours_and_told() -> None:
    """Only what is desired; it counts as never listed, so that nobody is taken for having unloaded it."""
    known = desired(adapter("b", path="/two/b"), adapter("a", path="/one/a"), adapter("c"))
    listed = {"b": "/two/b", "a": "/one/a", "c": "/adapters/c", "stranger": "/three/s"}
    files = {"/one/a": GONE, "/two/b": GONE, "/three/s": GONE}
    after, bombs, facts = defuse(known, listed, files)

    assert after == replace(known, listed=frozenset("c"))
    assert bombs == ("a", "b")
    assert [(f.event, f.level, f.repeats) for f in facts] == [
        (EventName.ADAPTER_DEFUSED, Level.WARNING, "a"),
        (EventName.ADAPTER_DEFUSED, Level.WARNING, "b"),
    ]
    reason = "its files are gone; policy.on_files_gone is unload"
    assert facts[0].fields == {"adapter": "a", "path": "/one/a", "reason": reason}
    assert defuse(known, listed, {}) == (known, (), ())
    assert defuse(known, listed, {})[0] is known
    elsewhere = listed | {"a": "/former/a", "b": "/two/b/"}
    gone = files | {"/former/a": GONE, "/two/b/": GONE}
    assert defuse(known, elsewhere, gone)[1] == ("b",)


def test_what_must_not_be_loaded_says_why() -> None:
    """Suspected poison first, then files that are gone where those are unloaded, then what has no room."""
    known = replace(desired(*map(adapter, "abcd")), suspects={"a": Suspect("/adapters/a", 2)})
    work = State(probation={"a": QuarantineTimer(2, 100.0)}, crowd=CapacityEstimate(2, 1))
    missing = {n: adapter(n) for n in "abc"}
    files = {"/adapters/a": GONE, "/adapters/b": GONE, "/d": GONE, "/s": GONE}
    seen = observed(1.0, card("d", "/d"), card("stranger", "/s"))
    full = Blocked(BlockReason.CAPACITY, "4 wanted, 1 fit: loading one makes another vanish")
    poison = Blocked(
        BlockReason.QUARANTINED, "the server died twice while it was being loaded or probed; held back for 1h"
    )
    gone = Blocked(BlockReason.FILES_GONE, "/adapters/b is gone")

    asked = hold_back(known, work, missing, seen, files, RULE, 99.0, unload_gone=False)
    assert asked.barred == {"a": poison, "b": full, "c": full}
    assert asked.spoilt == {"d": "/d is gone"}
    assert asked.files is files
    kept = hold_back(known, work, missing, seen, files, RULE, 99.0, unload_gone=True)
    assert kept.barred == {"a": Blocked(BlockReason.FILES_GONE, "/adapters/a is gone"), "b": gone, "c": full}
    over = hold_back(known, replace(work, crowd=CapacityEstimate()), missing, seen, {}, RULE, 100.0, unload_gone=True)
    assert (over.barred, over.spoilt) == ({}, {})


def test_what_does_not_belong_beside_the_served_models_is_not_loaded() -> None:
    """A name that one of them has, or an adapter of another model; that comes before the want of room."""
    missing = {"base": adapter("base"), "b": adapter("b", base="/models/other"), "c": adapter("c")}
    known = desired(*missing.values())
    work = State(crowd=CapacityEstimate(2, 1))
    seen = observed(1.0)
    found = hold_back(known, work, missing, seen, {}, RULE, 0.0, unload_gone=False).barred

    assert found == {
        BASE.id: Blocked(BlockReason.NAME_TAKEN, "its name is that of a served base model"),
        "b": Blocked(BlockReason.BASE_MODEL, "it was learned on another base model, /models/other"),
    }


def test_changed_files_cut_a_wait_down_to_the_plain_backoff() -> None:
    """From the end of the last load on; and never make a wait longer."""
    parked = Attempt(2, failure(), 10_000.0, ended_at=100.0, looked=Looked("then"))
    soon = replace(parked, not_before=100.5)
    attempts = {"a": parked, "b": soon, "c": parked}
    wanted = {n: adapter(n) for n in "abc"}
    files = {"/adapters/a": HERE, "/adapters/b": HERE, "/adapters/c": replace(HERE, fingerprint="then")}
    pardoned = pardon_changed(attempts, wanted, files, RULE)

    assert pardoned == {"a": replace(parked, not_before=102.0), "b": soon, "c": parked}
    assert pardon_changed({"b": soon}, wanted, files, RULE) == {"b": soon}
    exact = {"a": replace(parked, not_before=102.0)}
    assert pardon_changed(exact, wanted, files, RULE) is exact
    for same in (
        {"a": replace(parked, failures=0)},
        {"stranger": parked},
    ):
        assert pardon_changed(same, wanted, files, RULE) is same
    gone = {"/adapters/a": replace(HERE, sight=Sight.GONE)}
    assert pardon_changed({"a": parked}, wanted, gone, RULE) == {"a": parked}
    assert pardon_changed({"a": parked}, wanted, {}, RULE) == {"a": parked}


def test_changed_files_clear_a_suspect() -> None:
    """The files of one that was never seen are noted; the same files, or none, change nothing."""
    known = replace(
        desired(adapter("a", Origin.DECLARED), adapter("b"), adapter("c"), adapter("d")),
        suspects={
            "d": Suspect("/adapters/d", 1, files="then"),
            "c": Suspect("/adapters/c", 1, files="now"),
            "a": Suspect("/adapters/a", 1, files="then"),
            "b": Suspect("/adapters/b", 1),
        },
    )
    files = {f"/adapters/{n}": HERE for n in "abc"} | {"/adapters/d": GONE}
    after = clear_changed(known, files)

    assert after.suspects == {
        "d": Suspect("/adapters/d", 1, files="then"),
        "c": Suspect("/adapters/c", 1, files="now"),
        "b": Suspect("/adapters/b", 1, files="now"),
    }
    assert clear_changed(after, files) is after
    assert clear_changed(known, {}) is known
