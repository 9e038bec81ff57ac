from __future__ import annotations

import pytest
from msgspec.structs import replace

from lora_sidecar.config.settings import BackoffConfig
from lora_sidecar.core.events import EventName, Level
from lora_sidecar.core.model import Origin, Paused
from lora_sidecar.core.outcomes import Accepted, Failure, FailureKind, Retired
from lora_sidecar.reconcile.replacement import (
    Rule,
    Seen,
    absorb,
    advance,
    keys_by_path,
    refusal,
    retire,
    source,
    spared,
)
from lora_sidecar.reconcile.state import Attempt, Replacement, ReplacementPhase, Retire, State
from tests.support.core import adapter, desired, failure

RULE = BackoffConfig()
OLD, NEW = "/adapters/v1", "/adapters/v2"
A = adapter("a", Origin.DECLARED, path=NEW)
B = adapter("b", Origin.DECLARED, path=NEW)
KNOWN = desired(A)
SWAP = Replacement(OLD, NEW)
ALWAYS = Rule("always")
NOW = 100.0


def moved(swap: Replacement, path: str | None, attempt: Attempt | None = None, at: float = NOW) -> Replacement | None:
    """The replacement after one more listing, asked for at `at`, that shows the name with this path, or not at all."""
    work = State(swaps={"a": swap}, attempts={} if attempt is None else {"a": attempt})
    _, after, _ = advance(KNOWN, work, Seen({} if path is None else {"a": path}, at), NOW)
    return after.swaps.get("a")


def at_stage(stage: ReplacementPhase, **fields: object) -> Replacement:
    """A replacement that got so far."""
    return replace(SWAP, stage=stage, **fields)


@pytest.mark.parametrize(
    ("version", "keyed"),
    [
        (None, None),
        ("", None),
        ("unknown", None),
        ("0.6.9", None),
        ("0.7.0", True),
        ("0.11.0", True),
        ("0.11.1", False),
        ("0.30.9", False),
        ("0.31.0rc1", False),
        ("0.31.0.dev12", False),
        ("0.31.0", True),
        ("0.31.0+cpu", True),
        ("0.31.1rc1", True),
        ("1.0.0", True),
    ],
)
def test_versions_that_mix_up_weights_are_known(version: str | None, keyed: bool | None) -> None:
    """By the source of each release."""
    assert keys_by_path(version) is keyed


@pytest.mark.parametrize(
    ("policy", "version", "why"),
    [
        ("never", "0.32.0", "policy.replace is never"),
        ("always", None, ""),
        ("safe", "0.32.0", ""),
        ("safe", None, "the server tells no version that is known: what the former weights computed might be used on"),
        (
            "safe",
            "0.20.0",
            "vLLM 0.20.0 keys its prefix cache by name: what the former weights computed would be used on",
        ),
    ],
)
def test_a_replacement_that_must_not_be_says_why(policy: str, version: str | None, why: str) -> None:
    """Empty where it may."""
    assert refusal(policy, version) == why  # type: ignore[arg-type]


def test_a_swap_waits_until_the_name_has_left_the_listing() -> None:
    """Told or not; a listing asked for after the server said so, that shows the old path, shows somebody's load."""
    told = replace(SWAP, told_at=50.0, failures=3)
    by = "somebody loaded it again from its former path"

    assert moved(SWAP, OLD) == SWAP
    assert moved(replace(SWAP, told_at=NOW), OLD) == replace(SWAP, told_at=NOW)
    assert moved(told, OLD) == replace(told, stage=ReplacementPhase.REFUSED, why=by)
    assert moved(told, None) == replace(told, stage=ReplacementPhase.LOADING, failures=0)


@pytest.mark.parametrize(
    "stage",
    [
        ReplacementPhase.UNLOADING,
        ReplacementPhase.LOADING,
        ReplacementPhase.REVERTING,
        ReplacementPhase.REFUSED,
        ReplacementPhase.DONE,
    ],
)
def test_the_new_path_in_a_listing_is_the_end(stage: ReplacementPhase) -> None:
    """It is told once."""
    work = State(swaps={"a": at_stage(stage, why="x")})
    _, after, facts = advance(KNOWN, work, Seen({"a": NEW}, NOW), NOW)

    assert after.swaps == {"a": at_stage(ReplacementPhase.DONE)}
    told = [(one.event, one.level, one.fields) for one in facts]
    fact = (EventName.ADAPTER_REPLACED, Level.INFO, {"adapter": "a", "path": NEW, "previous": OLD})
    assert told == ([] if stage is ReplacementPhase.DONE else [fact])


def test_a_new_path_that_fails_is_undone_and_tried_again() -> None:
    """To and fro, counting; nothing moves while the load is not known to have failed."""
    first = Attempt(1, failure(message="no files"))
    second = Attempt(2, failure(message="no room"))
    loading = at_stage(ReplacementPhase.LOADING)

    for undecided in (None, Attempt(), Attempt(1), Attempt(0, failure())):
        assert moved(loading, None, undecided) == loading
    assert moved(replace(loading, failures=1), None, first) == replace(loading, failures=1)
    back = moved(loading, None, first)
    assert back == at_stage(ReplacementPhase.REVERTING, why="no files", failures=0, flips=1, refused=first)
    forth = moved(back, None, first)
    assert forth == at_stage(ReplacementPhase.LOADING, why="no files", failures=1, flips=2, refused=first)
    assert moved(forth, None, second) == at_stage(
        ReplacementPhase.REVERTING, why="no room", failures=2, flips=3, refused=first
    )


@pytest.mark.parametrize("stage", [ReplacementPhase.LOADING, ReplacementPhase.REVERTING])
def test_another_path_in_the_listing_ends_it(stage: ReplacementPhase) -> None:
    """The former one, loaded by us, or whatever somebody loaded."""
    undone = f"it cannot be loaded from {NEW}: no files; the former one is loaded again"

    assert moved(at_stage(stage, why="no files"), OLD) == at_stage(ReplacementPhase.REFUSED, why=undone)
    by = "somebody loaded it again from another path"
    assert moved(at_stage(stage), "/else") == at_stage(ReplacementPhase.REFUSED, why=by)


def test_a_finished_replacement_is_not_fought_for() -> None:
    """Once in a life of the server."""
    done, refused = at_stage(ReplacementPhase.DONE), at_stage(ReplacementPhase.REFUSED, why="x")
    again = "it was replaced once, and somebody loaded it from another path again"

    assert moved(done, None) == done
    assert moved(done, OLD) == at_stage(ReplacementPhase.REFUSED, why=again)
    assert moved(refused, OLD) == refused
    assert moved(refused, None) is None


def test_a_refused_one_is_tried_again_in_time() -> None:
    """At the very moment; and one that the config asks for no more is dropped, others stay."""
    assert moved(at_stage(ReplacementPhase.REFUSED, retry_at=NOW + 1), OLD) is not None
    assert moved(at_stage(ReplacementPhase.REFUSED, retry_at=NOW), OLD) is None
    assert moved(at_stage(ReplacementPhase.LOADING, retry_at=NOW), None) is not None
    assert moved(replace(SWAP, new="/else"), OLD) is None
    work = State(swaps={"gone": SWAP, "a": SWAP})
    assert advance(KNOWN, work, Seen({"a": OLD}, NOW), NOW)[1].swaps == {"a": SWAP}


def test_a_first_load_of_each_path_does_not_wait() -> None:
    """What became of another path says nothing of this one; later ones keep their backoff."""
    waiting = Attempt(1, failure(), not_before=1_000.0)

    def left(swap: Replacement, path: str | None = None) -> bool:
        work = State(swaps={"a": swap}, attempts={"a": waiting, "x": waiting})
        after = advance(KNOWN, work, Seen({} if path is None else {"a": path}, NOW), NOW)[1].attempts
        assert after["x"] == waiting
        return "a" in after

    assert not left(SWAP)
    assert not left(at_stage(ReplacementPhase.LOADING))
    assert left(at_stage(ReplacementPhase.REVERTING, flips=1))
    assert left(at_stage(ReplacementPhase.LOADING, flips=2))
    assert left(at_stage(ReplacementPhase.LOADING, failures=1))
    assert left(at_stage(ReplacementPhase.LOADING), OLD)


def test_a_name_that_was_retired_is_not_missed() -> None:
    """It counts as never listed, so that its load is due at once; other names stay listed."""
    known = desired(A, adapter("x"))
    after, work, facts = advance(known, State(swaps={"a": SWAP}), Seen({}, NOW), NOW)

    assert after.listed == {"x"}
    assert facts == ()
    assert work.swaps["a"].stage is ReplacementPhase.LOADING
    for swap in (at_stage(ReplacementPhase.LOADING), at_stage(ReplacementPhase.DONE)):
        assert advance(known, State(swaps={"a": swap}), Seen({}, NOW), NOW)[0] is known
    assert advance(known, State(swaps={"a": SWAP}), Seen({"a": OLD}, NOW), NOW)[0] is known
    untouched = State()
    assert advance(known, untouched, Seen({}, NOW), NOW) == (known, untouched, ())


def test_each_replacement_is_moved_on_whatever_became_of_the_others() -> None:
    """One that is obsolete, one that is done and one that is given up come before two that have left the listing."""
    names = ("done", "undone", "b", "c")
    known = desired(*(adapter(name, Origin.DECLARED, path=NEW) for name in names))
    swaps = {
        "gone": SWAP,
        "done": at_stage(ReplacementPhase.LOADING),
        "undone": at_stage(ReplacementPhase.REFUSED, retry_at=NOW + 60.0),
        "b": SWAP,
        "c": SWAP,
    }
    after, work, facts = advance(known, State(swaps=swaps), Seen({"done": NEW}, NOW), NOW)

    assert {name: swap.stage for name, swap in work.swaps.items()} == {
        "done": ReplacementPhase.DONE,
        "b": ReplacementPhase.LOADING,
        "c": ReplacementPhase.LOADING,
    }
    assert after.listed == {"done", "undone"}
    assert [fact.event for fact in facts] == [EventName.ADAPTER_REPLACED]


def ended(result: Accepted | Failure, work: State, incarnation: int = 1) -> State:
    """The work after a retirement ended at 90."""
    return absorb(work, [Retired("a", incarnation, result, 90.0)], KNOWN, RULE, NOW)[0]


def test_what_came_of_a_retirement_is_noted() -> None:
    """When the server said so; whatever was in the way may pass, since nothing was touched."""
    swapping = State(swaps={"a": SWAP, "b": SWAP}, prunes={"x": Attempt()})
    no_files = ended(failure(FailureKind.FILES, "no files"), swapping)
    wrong = ended(failure(FailureKind.ADAPTER, "no"), swapping)
    dead = ended(failure(FailureKind.ENGINE, "dead"), swapping)

    assert ended(Accepted(), swapping).swaps == {"a": replace(SWAP, told_at=90.0), "b": SWAP}
    refused = at_stage(ReplacementPhase.REFUSED, why="no files", retry_at=NOW + RULE.max)
    assert (no_files.swaps["a"], no_files.prunes) == (refused, {"x": Attempt()})
    assert wrong.swaps["a"] == at_stage(ReplacementPhase.REFUSED, why="no", retry_at=NOW + RULE.max)
    assert dead.swaps["a"] == at_stage(ReplacementPhase.REFUSED, why="dead", retry_at=NOW + RULE.max)
    assert ended(Accepted(), swapping, incarnation=2) == swapping


def test_what_came_of_a_prune_is_noted() -> None:
    """It is not sent again at once, whatever came of it."""
    fault = failure(FailureKind.ENGINE, "dead")

    assert ended(Accepted(), State()).prunes == {"a": Attempt(not_before=NOW + RULE.max, ended_at=90.0)}
    assert ended(fault, State()).prunes == {"a": Attempt(failure=fault, not_before=NOW + RULE.max, ended_at=90.0)}


def test_the_end_of_a_retirement_is_told() -> None:
    """By which part of the config it was asked for, or what went wrong; those of another life are passed over."""
    fault = failure(FailureKind.ENGINE, "dead")
    late = Retired("a", 9, fault, 90.0)
    ours = [late, Retired("a", 1, Accepted(), 90.0), Retired("x", 1, Accepted(), 90.0), Retired("a", 1, fault, 90.0)]
    _, facts = absorb(State(swaps={"a": SWAP}), ours, KNOWN, RULE, NOW)

    assert [(one.event, one.level, one.repeats, one.fields) for one in facts] == [
        (
            EventName.ADAPTER_RETIRED,
            Level.INFO,
            "",
            {"adapter": "a", "reason": "the config gives it another path"},
        ),
        (EventName.ADAPTER_RETIRED, Level.INFO, "", {"adapter": "x", "reason": "the config removed it"}),
        (
            EventName.UNLOAD_FAILED,
            Level.WARNING,
            "a engine",
            {"adapter": "a", "kind": "engine", "message": "dead"},
        ),
    ]


def retired(work: State, listed: dict[str, str], rule: Rule = ALWAYS, **more: bool) -> tuple[State, tuple[Retire, ...]]:
    """What is due of two declared adapters."""
    steady = more.get("steady", True)
    return retire(desired(A, B), work, Seen(listed, NOW), rule, NOW, steady=steady)


def test_replacements_go_one_at_a_time() -> None:
    """While one is under way the others wait, each with its reason."""
    work, due = retired(State(), {"a": OLD, "b": OLD})

    assert due == (Retire("a", A),)
    assert work.swaps == {"a": SWAP}
    assert work.path_reasons == {"a": "it is being replaced", "b": "it waits for its turn to be replaced"}
    again, due = retired(work, {"a": OLD, "b": OLD})
    assert due == (Retire("a", A),)
    assert again.path_reasons == work.path_reasons
    for stage in (ReplacementPhase.LOADING, ReplacementPhase.REVERTING):
        after, due = retired(State(swaps={"a": at_stage(stage, why="x")}), {"a": OLD, "b": OLD})
        assert due == ()
        assert after.path_reasons == {"a": "x", "b": "it waits for its turn to be replaced"}
    for stage in (ReplacementPhase.DONE, ReplacementPhase.REFUSED):
        _, due = retired(State(swaps={"a": at_stage(stage, why="x")}), {"a": OLD, "b": OLD})
        assert due == (Retire("b", B),)


def test_nothing_new_is_retired_while_something_is_missing() -> None:
    """What is under way goes on."""
    work, due = retired(State(), {"a": OLD}, steady=False)

    assert due == ()
    assert work.path_reasons == {"a": "it waits for its turn to be replaced"}
    assert retired(State(swaps={"a": SWAP}), {"a": OLD}, steady=False)[1] == (Retire("a", A),)


def test_only_declared_adapters_with_another_path_are_replaced() -> None:
    """And by a rule that allows it; what comes after in the list is looked at all the same."""
    known = desired(adapter("0", path=NEW), replace(A, name="1"), replace(A, name="2"), A)
    seen = Seen({"0": OLD, "2": NEW, "a": OLD}, NOW)
    work, due = retire(known, State(), seen, ALWAYS, NOW, steady=True)

    assert due == (Retire("a", A),)
    assert work.path_reasons == {"a": "it is being replaced"}
    work, due = retire(known, State(), seen, Rule("never"), NOW, steady=True)
    assert (work.path_reasons, due) == ({"a": "policy.replace is never"}, ())
    work, due = retire(known, State(swaps={"a": SWAP}), seen, Rule("never"), NOW, steady=True)
    assert (work.path_reasons, due) == ({"a": "it is being replaced"}, (Retire("a", A),))


PRUNE = Rule("always", prune=True)
REMOVED = replace(desired(A), released={"z": "/z", "c": "/c", "moved": "/m", "left": "/l"})
SEEN = {"a": NEW, "z": "/z/", "c": "/c", "moved": "/else", "stranger": "/s"}


def pruned(work: State, rule: Rule = PRUNE, now: float = NOW, **more: bool) -> list[Retire]:
    """What is due of two removed adapters that are still listed from their paths."""
    return list(retire(REMOVED, work, Seen(SEEN, NOW), rule, now, steady=more.get("steady", True))[1])


def test_removed_adapters_are_pruned_where_that_is_asked_for() -> None:
    """In order, and only those that are listed as they were; a config that declares nothing prunes nothing."""
    assert pruned(State()) == [Retire("c"), Retire("z")]
    assert pruned(State(), Rule("always")) == []
    assert pruned(State(), replace(PRUNE, declares=False)) == []
    assert pruned(State(), steady=False) == []
    known = replace(desired(A), released={"c": "/c"})
    seen = Seen({"a": OLD, "c": "/c"}, NOW)
    assert retire(known, State(), seen, PRUNE, NOW, steady=True)[1] == (Retire("a", A),)


def test_a_prune_is_repeated_after_its_wait_and_a_newer_listing() -> None:
    """Not before both; what is released no more is forgotten."""
    tried = Attempt(not_before=NOW, ended_at=NOW - 1)

    def due(one: Attempt) -> bool:
        return Retire("c") in pruned(State(prunes={"c": one}))

    assert due(tried)
    assert not due(replace(tried, not_before=NOW + 0.1))
    assert not due(replace(tried, ended_at=NOW))
    kept = retire(REMOVED, State(prunes={"c": tried, "a": tried}), Seen(SEEN, NOW), PRUNE, NOW, steady=True)[0]
    assert kept.prunes == {"c": tried}


def test_an_emptied_config_says_what_it_spares() -> None:
    """Up to twenty names; nothing where it prunes, or nothing is left."""
    empty = replace(PRUNE, declares=False)
    many = replace(REMOVED, released={f"{n:02d}": "/x" for n in range(25)})
    listed = {f"{n:02d}": "/x" for n in range(25)}

    assert spared(REMOVED, Seen(SEEN, NOW), empty) == "the config declares no adapter at all: c, moved, z stay loaded"
    assert spared(REMOVED, Seen({}, NOW), empty) == ""
    assert spared(REMOVED, Seen(SEEN, NOW), PRUNE) == ""
    assert spared(REMOVED, Seen(SEEN, NOW), Rule("always", declares=False)) == ""
    told = spared(many, Seen(listed, NOW), empty)
    assert told.endswith(", 19 stay loaded")


def test_the_former_path_is_loaded_while_a_replacement_is_undone() -> None:
    """And only then."""
    assert source(A, {"a": at_stage(ReplacementPhase.REVERTING)}) == replace(A, path=OLD)
    assert source(A, {"a": at_stage(ReplacementPhase.LOADING)}) is A
    assert source(A, {"b": at_stage(ReplacementPhase.REVERTING)}) is A


def test_a_pause_holds_replacements_up_and_says_so() -> None:
    """What is under way as well; what came to an end keeps its own reason."""
    known = replace(desired(A, B), paused=Paused())
    seen = Seen({"a": OLD, "b": OLD}, NOW)
    waits = "it waits: loads and unloads are paused"

    for swap in (SWAP, at_stage(ReplacementPhase.LOADING, why="x"), at_stage(ReplacementPhase.REVERTING, why="x")):
        after, _ = retire(known, State(swaps={"a": swap}), seen, ALWAYS, NOW, steady=True)
        assert after.path_reasons == {"a": waits, "b": waits}
        assert after.swaps == {"a": swap}
    after, _ = retire(
        known, State(swaps={"a": at_stage(ReplacementPhase.REFUSED, why="x")}), seen, ALWAYS, NOW, steady=True
    )
    assert after.path_reasons == {"a": "x", "b": waits}
    after, _ = retire(known, State(), seen, Rule("never"), NOW, steady=True)
    assert after.path_reasons == {"a": "policy.replace is never", "b": "policy.replace is never"}
