from __future__ import annotations

import pytest
from msgspec.structs import replace

from lora_sidecar.control.requests import (
    MEMORY_LIMIT,
    Answer,
    Load,
    Pause,
    Request,
    Resume,
    Unload,
    already_loaded,
    receive,
    retract,
    withdraw,
)
from lora_sidecar.control.responses import progress, refusal, refused, under_way
from lora_sidecar.core.events import EventName, Level
from lora_sidecar.core.model import Adapter, Desired, Origin, Paused, Withdrawn
from lora_sidecar.core.observation import BaseModel, Observation, Observed
from lora_sidecar.core.outcomes import Accepted, Failure, FailureKind, LoadDeferred, Outcome, SleepState, Unloaded
from lora_sidecar.reconcile.backoff import Attempt
from lora_sidecar.reconcile.beat import Blocked, BlockReason
from lora_sidecar.reconcile.capacity import Capacity
from lora_sidecar.reconcile.loads import Loads, ServerBackoff
from lora_sidecar.reconcile.outage import Phase, ServerState
from lora_sidecar.reconcile.state import Plan, State, Verdict
from tests.support.core import BASE, NOTHING, adapter, card, desired, failure, observed, unknown

AT = 1_000.0
UP = State(server=ServerState(Phase.UP), last=observed(AT))
A = Load("a", "/adapters/a")
REQUESTED = adapter("a", Origin.REQUESTED, base=BASE.root)
DECLARED = adapter("a", Origin.DECLARED)
ADDED = Answer(200, "Success: LoRA adapter 'a' added successfully.")
REMOVED = Answer(200, "Success: LoRA adapter 'a' removed successfully.")


def taken(known: Desired, intent: Request, seen: Observation | None = None, phase: Phase = Phase.UP) -> Desired:
    """What is desired after an intent that need not wait."""
    received = receive(known, intent, seen or observed(AT), phase)
    assert received is not None
    return received.desired


def answer(known: Desired, intent: Request, seen: Observation | None = None) -> Answer | None:
    """What is answered at once."""
    received = receive(known, intent, seen or observed(AT), Phase.UP)
    assert received is not None
    return received.answer


def went(
    intent: Request, known: Desired, work: State = UP, seen: Observation | None = None, **more: bool
) -> Answer | None:
    """The answer at a heartbeat that came to these."""
    fresh = more.get("fresh", False)
    return progress(intent, Plan(known, work, Verdict.WAITING), seen or observed(AT), AT, fresh=fresh)


def test_a_load_is_remembered_with_all_that_it_says() -> None:
    """Name, path, flag, and the base model that is served; it is told, and answered only when it is listed."""
    received = receive(NOTHING, Load("a", "/x", is_3d_lora_weight=True), observed(AT), Phase.UP)

    assert received is not None
    wanted = Adapter("a", "/x", Origin.REQUESTED, is_3d_lora_weight=True, base=BASE.root)
    assert received.desired == replace(NOTHING, adapters={"a": wanted})
    assert received.before is NOTHING
    assert received.answer is None
    (fact,) = received.events
    assert (fact.event, fact.level) == (EventName.ADAPTER_REQUESTED, Level.INFO)
    assert fact.fields == {"adapter": "a", "path": "/x", "origin": "requested"}


@pytest.mark.parametrize("seen", [unknown(AT), observed(AT, bases=())])
def test_a_load_while_no_base_model_is_known_is_bound_to_none(seen: Observation) -> None:
    """It will be loaded into whatever server answers."""
    assert taken(NOTHING, A, seen).adapters["a"].base is None


def test_the_same_load_again_changes_nothing() -> None:
    """Desired is the very object, and nothing is told."""
    known = desired(REQUESTED)
    received = receive(known, A, observed(AT), Phase.UP)

    assert received is not None
    assert received.desired is known
    assert received.events == ()


def test_a_released_adapter_that_is_asked_for_is_wanted_again() -> None:
    """Even where it is desired with the same words."""
    known = replace(desired(REQUESTED), orphaned={"a": "/adapters/a", "b": "/adapters/b"})

    assert taken(known, A).orphaned == {"b": "/adapters/b"}


def test_what_was_listed_before_the_request_counts_no_more() -> None:
    """From the request on its absence is a loss, and nobody's unload; other names keep theirs."""
    known = desired(adapter("b"), listed=frozenset("ab"))

    assert taken(known, A).listed == {"b"}


def test_a_load_takes_back_its_own_withdrawal_and_no_other() -> None:
    """A script unloads and loads."""
    known = replace(NOTHING, withdrawn={"a": Withdrawn(pending=False), "b": Withdrawn()})

    assert taken(known, A).withdrawn == {"b": Withdrawn()}


def test_a_load_waits_for_the_unload_of_its_name() -> None:
    """Only where that unload can be carried out now: else it is taken into desired, and both wait."""
    known = replace(NOTHING, withdrawn={"a": Withdrawn()})
    paused = replace(known, paused=Paused())

    assert receive(known, A, observed(AT), Phase.UP) is None
    assert receive(known, Load("b", "/b"), observed(AT), Phase.UP) is not None
    assert taken(known, A, unknown(AT), Phase.DOWN).adapters["a"] == replace(REQUESTED, base=None)
    assert taken(paused, A).adapters == {"a": REQUESTED}
    done = replace(NOTHING, withdrawn={"a": Withdrawn(pending=False)})
    assert taken(done, A).adapters == {"a": REQUESTED}


@pytest.mark.parametrize(
    "known", [desired(DECLARED), replace(NOTHING, withdrawn={"a": Withdrawn(DECLARED, pending=False)})]
)
def test_a_declared_name_is_loaded_as_the_config_has_it(known: Desired) -> None:
    """Withdrawn or not; a slash at the end makes no other path."""
    assert taken(known, Load("a", "/adapters/a/", is_3d_lora_weight=True)).adapters == {"a": DECLARED}


@pytest.mark.parametrize(
    "known", [desired(DECLARED), replace(NOTHING, withdrawn={"a": Withdrawn(DECLARED, pending=False)})]
)
def test_a_declared_name_with_another_path_is_refused(known: Desired) -> None:
    """The config decides, and says so."""
    received = receive(known, Load("a", "/elsewhere"), observed(AT), Phase.UP)

    assert received is not None
    assert received.desired is known
    assert received.before is known
    assert received.answer == Answer(
        400,
        "The config declares the lora adapter 'a' with the path '/adapters/a': change it there, or use another name.",
        "InvalidUserInput",
    )


def test_a_name_of_a_base_model_is_refused() -> None:
    """VLLM refuses it too; other names are not."""
    received = receive(NOTHING, Load("base", "/x"), observed(AT), Phase.UP)

    assert received is not None
    assert received.desired is NOTHING
    assert received.before is NOTHING
    sentence = "The lora adapter 'base' conflicts with a served base model."
    assert received.answer == Answer(400, sentence, "InvalidUserInput")


def test_what_is_loaded_already_is_said_in_the_engines_words() -> None:
    """With that path it is remembered all the same; with another one nothing is."""
    same = receive(NOTHING, A, observed(AT, "a"), Phase.UP)
    other = receive(NOTHING, A, observed(AT, card("a", "/other")), Phase.UP)

    assert same is not None
    assert other is not None
    assert same.answer == other.answer == already_loaded("a")
    assert already_loaded("a") == Answer(
        400,
        "The lora adapter 'a' has already been loaded. If you want to load the adapter in place,"
        " set 'load_inplace' to True.",
        "InvalidUserInput",
    )
    assert same.desired.adapters == {"a": REQUESTED}
    assert other.desired is NOTHING
    assert other.before is NOTHING


def test_a_link_is_known_by_the_path_that_it_is_listed_with() -> None:
    """A server that lists real paths lists the very adapter; it stays known after another such request."""
    known = desired(adapter("a", Origin.REQUESTED, listed_as="/real/a"))
    seen = observed(AT, card("a", "/real/a"))

    assert went(A, known, seen=seen) == ADDED
    assert went(Load("a", "/else"), known, seen=seen) == already_loaded("a")
    assert taken(known, A, seen).adapters["a"].listed_as == "/real/a"
    moved = taken(known, Load("a", "/else"), observed(AT)).adapters["a"]
    assert (moved.path, moved.listed_as) == ("/else", None)


def test_a_withdrawn_declared_link_is_known_by_its_path_too() -> None:
    """The config still says what the name stands for."""
    linked = replace(DECLARED, listed_as="/real/a")
    known = replace(NOTHING, withdrawn={"a": Withdrawn(linked, pending=False)})

    assert taken(known, A, observed(AT, card("a", "/real/a"))).adapters == {"a": linked}


def test_memory_of_requests_is_bounded() -> None:
    """A load that would pass the limit is refused, one that just fits is not; nor is what makes nothing larger."""
    path = "/" + "x" * 999
    many = desired(*(adapter(f"{n:05d}", Origin.REQUESTED, path=path) for n in range(4_173)))
    room = MEMORY_LIMIT - 4_173 * 1_005
    fits = Load("é", "/" + "y" * (room - 3))
    full = taken(many, fits)

    assert "é" in full.adapters
    sentence = f"No more adapters can be remembered: their names and paths have more than {MEMORY_LIMIT} bytes."
    assert MEMORY_LIMIT == 4_194_304
    for one, known in ((replace(fits, path=fits.path + "y"), many), (Load("z", "/z"), full)):
        received = receive(known, one, observed(AT), Phase.UP)
        assert received is not None
        assert received.answer == Answer(400, sentence, "InvalidUserInput")
        assert received.desired is known
        assert received.before is known
    assert answer(full, Load("é", "/z")) is None
    assert answer(full, Unload("00000")) is None


def test_memory_of_unloads_is_bounded() -> None:
    """Names that were withdrawn are remembered as well."""
    known = replace(NOTHING, withdrawn={"x" * (MEMORY_LIMIT - 1): Withdrawn()})
    seen = observed(AT, "b", "bb")

    assert "b" in taken(known, Unload("b"), seen).withdrawn
    received = receive(known, Unload("bb"), seen, Phase.UP)
    assert received is not None
    sentence = f"No more can be remembered: names and paths have more than {MEMORY_LIMIT} bytes."
    assert received.answer == Answer(400, sentence, "InvalidUserInput")
    assert received.desired is known
    assert received.before is known


def test_an_unload_is_remembered_until_the_server_was_told() -> None:
    """The name is out of everything else that is desired; its neighbours stay."""
    known = replace(
        desired(REQUESTED, adapter("b"), listed=frozenset("ab")),
        orphaned={"a": "/1", "c": "/2"},
        withdrawn={"d": Withdrawn()},
    )
    received = receive(known, Unload("a"), observed(AT), Phase.UP)

    assert received is not None
    assert received.answer is None
    assert received.before is known
    assert received.desired == replace(
        known,
        adapters={"b": adapter("b")},
        listed=frozenset("b"),
        orphaned={"c": "/2"},
        withdrawn={"d": Withdrawn(), "a": Withdrawn()},
    )
    (fact,) = received.events
    assert (fact.event, fact.level) == (EventName.ADAPTER_WITHDRAWN, Level.INFO)
    assert fact.fields == {"adapter": "a", "path": "/adapters/a"}


def test_an_unload_of_what_nobody_desires_has_no_path_to_tell() -> None:
    """It is listed, so the server is told."""
    received = receive(NOTHING, Unload("a"), observed(AT, "a"), Phase.UP)

    assert received is not None
    assert received.desired.withdrawn == {"a": Withdrawn()}
    assert received.events[0].fields == {"adapter": "a", "path": None}


def test_the_same_unload_again_changes_nothing() -> None:
    """Desired is the very object, and nothing is told."""
    known, _ = withdraw(desired(DECLARED), "a")
    again, facts = withdraw(known, "a")

    assert known.withdrawn == {"a": Withdrawn(DECLARED)}
    assert again is known
    assert facts == ()


def test_an_unknown_name_cannot_be_unloaded() -> None:
    """Only where a listing says so, and no unload of it is pending: who knows what an absent server has."""
    missing = Answer(404, "The lora adapter 'a' cannot be found.", "NotFoundError")
    received = receive(NOTHING, Unload("a"), observed(AT, "b"), Phase.UP)

    assert received is not None
    assert received.answer == missing
    assert received.desired is NOTHING
    assert received.before is NOTHING
    assert answer(replace(NOTHING, withdrawn={"a": Withdrawn(pending=False)}), Unload("a")) == missing
    assert answer(replace(NOTHING, withdrawn={"a": Withdrawn()}), Unload("a")) is None
    assert answer(NOTHING, Unload("a"), unknown(AT)) is None


def test_a_pause_and_its_end() -> None:
    """Each is told once, and answered at once."""
    paused = receive(NOTHING, Pause("upgrade"), unknown(AT), Phase.DOWN)

    assert paused is not None
    assert paused.desired == replace(NOTHING, paused=Paused("upgrade"))
    assert paused.before is NOTHING
    assert paused.answer == Answer(200, "paused")
    assert [(f.event, f.fields) for f in paused.events] == [(EventName.CONTROL_PAUSED, {"reason": "upgrade"})]
    again = receive(paused.desired, Pause("upgrade"), unknown(AT), Phase.DOWN)
    assert again is not None
    assert again.desired is paused.desired
    assert again.before is paused.desired
    assert (again.answer, again.events) == (Answer(200, "paused"), ())
    other = receive(paused.desired, Pause("why"), unknown(AT), Phase.DOWN)
    assert other is not None
    assert other.desired.paused == Paused("why")
    resumed = receive(paused.desired, Resume(), unknown(AT), Phase.DOWN)
    assert resumed is not None
    assert resumed.desired == NOTHING
    assert resumed.before is paused.desired
    assert resumed.answer == Answer(200, "resumed")
    assert [f.event for f in resumed.events] == [EventName.CONTROL_RESUMED]
    idle = receive(NOTHING, Resume(), unknown(AT), Phase.DOWN)
    assert idle is not None
    assert idle.desired is NOTHING
    assert idle.before is NOTHING
    assert (idle.answer, idle.events) == (Answer(200, "not paused"), ())


def ended(result: Accepted | Failure | LoadDeferred, name: str = "a", path: str = "/adapters/a") -> Outcome:
    """A load that ended."""
    return Outcome(adapter(name, Origin.REQUESTED, path=path), 1, result, AT, 1.0)


@pytest.mark.parametrize("kind", FailureKind)
def test_only_what_the_request_asks_for_refuses_it(kind: FailureKind) -> None:
    """What is the server's fault may be different tomorrow."""
    fault = failure(kind)
    ours = kind in (FailureKind.FILES, FailureKind.ADAPTER, FailureKind.UNCLASSIFIED)

    assert refusal(A, observed(AT), (ended(fault),), ()) == (fault if ours else None)
    assert refusal(Unload("a"), observed(AT), (), (Unloaded("a", 1, fault, AT),)) == (fault if ours else None)


def test_a_failure_of_something_else_refuses_nothing() -> None:
    """Another name, another path, another kind of request, or a load that came to be listed after all."""
    fault = failure()
    others = (ended(fault, "b"), ended(fault, path="/else"), ended(Accepted()))

    assert refusal(A, observed(AT), others, (Unloaded("a", 1, fault, AT),)) is None
    assert refusal(A, observed(AT), (*others, ended(fault)), ()) == fault
    assert refusal(A, observed(AT, "a"), (ended(fault),), ()) is None
    assert refusal(Unload("a"), observed(AT), (ended(fault),), (Unloaded("b", 1, fault, AT),)) is None
    for intent in (Pause(), Resume()):
        assert refusal(intent, observed(AT), (ended(fault),), (Unloaded("a", 1, fault, AT),)) is None


@pytest.mark.parametrize(
    ("fault", "status", "kind"),
    [
        (Failure(FailureKind.ADAPTER, "no", 400, b"body"), 400, "BadRequestError"),
        (Failure(FailureKind.FILES, "no", 404), 404, "NotFoundError"),
        (Failure(FailureKind.UNCLASSIFIED, "no", 418), 418, "InternalServerError"),
        (Failure(FailureKind.FILES, "no"), 500, "InternalServerError"),
        (Failure(FailureKind.FILES, "No adapter found for /x"), 404, "NotFoundError"),
        (Failure(FailureKind.ADAPTER, "no"), 500, "InternalServerError"),
    ],
)
def test_a_refusal_is_told_as_the_engine_would(fault: Failure, status: int, kind: str) -> None:
    """Its status, its word for the error, its body; without an answer of the engine, those that it would have given."""
    said, (fact,) = refused(A, fault)

    assert said == Answer(status, fault.message, kind, fault.answer)
    assert (fact.event, fact.level) == (EventName.ADAPTER_REFUSED, Level.WARNING)
    assert fact.fields == {"adapter": "a", "status": status, "message": fault.message}
    assert refused(Unload("b"), fault)[1][0].fields["adapter"] == "b"
    assert refused(Pause(), fault)[1][0].fields["adapter"] == ""


def test_a_load_is_answered_when_it_is_listed() -> None:
    """With the path asked for; another one is somebody else's."""
    known = desired(REQUESTED)

    assert went(A, known, seen=observed(AT, "a")) == ADDED
    assert went(A, known, seen=observed(AT, card("a", "/other"))) == already_loaded("a")
    assert went(A, known) is None


def test_what_the_server_evicted_was_loaded() -> None:
    """It has it, and made room in its listing; a server that is away shows nothing."""
    work = replace(UP, capacity=Capacity(evicted=frozenset("a")))
    away = replace(work, server=ServerState(Phase.DOWN))

    assert went(A, desired(REQUESTED), work) == ADDED
    assert went(A, desired(REQUESTED), away, unknown(AT)) != ADDED


def test_another_request_decided_otherwise_meanwhile() -> None:
    """A load whose name was unloaded, an unload whose name was loaded."""
    unloaded = Answer(409, "The lora adapter 'a' was unloaded by another request.", "Conflict")
    loaded = Answer(409, "The lora adapter 'a' was loaded by another request.", "Conflict")

    assert went(A, NOTHING) == unloaded
    assert went(Unload("a"), desired(REQUESTED)) == loaded
    assert went(Unload("a"), desired(REQUESTED), seen=observed(AT, "a")) == REMOVED


def waiting(why: str, done: str = "loaded") -> Answer:
    """The answer to what is remembered and must wait."""
    return Answer(202, f"Accepted: LoRA adapter 'a' is remembered and will be {done}; not yet: {why}.")


AWAY = replace(UP, server=ServerState(Phase.DOWN, detail="connection refused"))
NO_KEY = Failure(FailureKind.UNAUTHORIZED, "a key is needed")
HELD = replace(UP, loads=Loads(backoff=ServerBackoff(NO_KEY, 1, AT + 0.1)))


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize(
    ("work", "why"),
    [
        (AWAY, "the server is down (connection refused)"),
        (replace(UP, server=ServerState(Phase.STARTING)), "the server is starting"),
        (HELD, "a key is needed"),
        (
            replace(UP, last=observed(AT, runtime_loading=False)),
            "the server has no route to load adapters at run time",
        ),
    ],
)
def test_a_load_that_must_wait_says_for_what(work: State, why: str, fresh: bool) -> None:
    """At once: nothing will come of it in this heartbeat or the next."""
    assert went(A, desired(REQUESTED), work, fresh=fresh) == waiting(why)


def test_a_hold_that_is_over_holds_nothing() -> None:
    """The load is about to be sent."""
    over = replace(HELD, loads=Loads(backoff=ServerBackoff(NO_KEY, 1, AT)))

    assert went(A, desired(REQUESTED), over) is None
    assert went(A, desired(REQUESTED), replace(UP, last=None)) is None


@pytest.mark.parametrize(("reason", "said"), [("upgrade", ": upgrade"), ("", "")])
def test_a_request_in_a_pause_says_so(reason: str, said: str) -> None:
    """With the operator's reason."""
    why = f"loads and unloads are paused{said}"

    assert went(A, replace(desired(REQUESTED), paused=Paused(reason)), AWAY) == waiting(why)
    pending = replace(NOTHING, withdrawn={"a": Withdrawn()}, paused=Paused(reason))
    assert went(Unload("a"), pending) == waiting(why, "unloaded")


def test_a_first_try_that_failed_is_told_from_the_next_heartbeat_on() -> None:
    """By what the engine said, or by why the load was not sent; a request that just came has not been tried."""
    failed = replace(UP, loads=Loads({"a": Attempt(1, failure(FailureKind.ENGINE, "the engine is dead"))}))
    asleep = replace(UP, loads=Loads(deferred=LoadDeferred(SleepState.ASLEEP, "the engine sleeps")))
    known = desired(REQUESTED)

    assert went(A, known, failed) == waiting("the engine is dead")
    assert went(A, known, failed, fresh=True) is None
    assert went(A, known, asleep) == waiting("the engine sleeps")
    assert went(A, known, replace(asleep, loads=replace(asleep.loads, attempts=failed.loads.attempts))) == waiting(
        "the engine is dead"
    )
    forgiven = {"a": Attempt(0, failure(FailureKind.ENGINE, "the engine is dead"))}
    assert went(A, known, replace(UP, loads=Loads(forgiven))) is None
    assert went(A, known, replace(UP, loads=Loads({"b": failed.loads.attempts["a"]}))) is None
    assert went(A, known, replace(UP, loads=Loads({"a": Attempt(1)}))) is None


def test_a_load_that_is_barred_says_why_at_once() -> None:
    """What is the server's own reason comes first; what bars another adapter is none of it."""
    barred = replace(UP, blocked={"a": Blocked(BlockReason.CAPACITY, "no room")})
    known = desired(REQUESTED)

    assert went(A, known, barred, fresh=True) == waiting("no room")
    assert went(A, known, replace(barred, server=AWAY.server)) == waiting("the server is down (connection refused)")
    assert went(A, known, replace(UP, blocked={"b": Blocked(BlockReason.CAPACITY, "no room")})) is None


def test_an_unload_is_answered_when_the_server_was_told() -> None:
    """Until then it waits, and says why where there is a reason."""
    pending = replace(NOTHING, withdrawn={"a": Withdrawn()})
    failed = replace(UP, unloads={"a": Attempt(1, failure(FailureKind.ENGINE, "the engine is dead"))})

    assert went(Unload("a"), NOTHING) == REMOVED
    assert went(Unload("a"), replace(NOTHING, withdrawn={"a": Withdrawn(pending=False)})) == REMOVED
    assert went(Unload("a"), pending) is None
    assert went(Unload("a"), pending, AWAY) == waiting("the server is down (connection refused)", "unloaded")
    assert went(Unload("a"), pending, failed) == waiting("the engine is dead", "unloaded")
    assert went(Unload("a"), pending, replace(failed, server=AWAY.server)) == waiting(
        "the server is down (connection refused)", "unloaded"
    )
    assert went(Unload("a"), pending, replace(UP, unloads={"a": Attempt()})) is None


def test_a_pause_has_no_progress() -> None:
    """It was answered at once."""
    assert went(Pause(), NOTHING) is None
    assert went(Resume(), NOTHING) is None


def test_what_takes_longer_than_anybody_waits_is_accepted() -> None:
    """It is remembered."""
    assert under_way(A) == waiting("it is still under way")
    assert under_way(Unload("a")) == waiting("it is still under way", "unloaded")


def test_a_refused_load_leaves_what_was_there_before() -> None:
    """The adapter as it was desired, the name as it was released or withdrawn."""
    old = adapter("a", Origin.REQUESTED, path="/old")
    for before in (
        desired(old),
        replace(NOTHING, orphaned={"a": "/old"}),
        replace(NOTHING, withdrawn={"a": Withdrawn(pending=False)}),
    ):
        after = taken(before, A)
        assert "a" in after.adapters
        back = retract(after, A, before)
        assert (back.adapters, back.orphaned, back.withdrawn) == (before.adapters, before.orphaned, before.withdrawn)


def test_a_refused_load_of_a_name_that_was_both_desired_and_released_leaves_it_desired() -> None:
    """As a checkpoint may hold it."""
    before = replace(desired(REQUESTED), orphaned={"a": "/adapters/a"})
    back = retract(taken(before, A), A, before)

    assert (back.adapters, back.orphaned) == (before.adapters, {})


def test_a_refused_load_leaves_alone_what_was_decided_meanwhile() -> None:
    """Another request gave the name another path, unloaded it, or the config declares it now."""
    for meanwhile in (desired(adapter("a", Origin.REQUESTED, path="/other")), NOTHING, desired(DECLARED)):
        assert retract(meanwhile, A, NOTHING) is meanwhile
    changed = desired(replace(DECLARED, priority=1))
    assert retract(changed, A, replace(NOTHING, withdrawn={"a": Withdrawn(DECLARED, pending=False)})) is changed


def test_a_refused_load_of_a_withdrawn_declared_name_leaves_it_withdrawn() -> None:
    """The config entry is the one that it was."""
    before = replace(NOTHING, withdrawn={"a": Withdrawn(DECLARED, pending=False)})
    after = taken(before, A)

    assert after.adapters == {"a": DECLARED}
    assert retract(after, A, before) == before


def test_a_slash_at_the_end_does_not_keep_a_refused_load() -> None:
    """The name stands for the folder that was asked for."""
    after = taken(NOTHING, Load("a", "/adapters/a/"))

    assert retract(after, A, NOTHING).adapters == {}


def test_a_refused_unload_leaves_what_was_there_before() -> None:
    """With what the config says of it by now."""
    before = desired(DECLARED)
    after, _ = withdraw(before, "a")
    newer = replace(DECLARED, priority=5)
    reloaded = replace(after, withdrawn={"a": Withdrawn(newer)})

    assert retract(after, Unload("a"), before).adapters == {"a": DECLARED}
    assert retract(reloaded, Unload("a"), before).adapters == {"a": newer}
    assert retract(reloaded, Unload("a"), before).withdrawn == {}
    assert retract(before, Unload("a"), before) is before
    released = replace(NOTHING, orphaned={"a": "/adapters/a"})
    assert retract(withdraw(released, "a")[0], Unload("a"), released) == released
    learned = desired(adapter("a"))
    back = retract(withdraw(learned, "a")[0], Unload("a"), learned)
    assert (back.adapters, back.withdrawn) == (learned.adapters, {})
    done = replace(NOTHING, withdrawn={"a": Withdrawn(pending=False)})
    assert retract(withdraw(done, "a")[0], Unload("a"), done) == done


def test_two_base_models_do_not_confuse_a_request() -> None:
    """The first card is the model, the others are its further names."""
    seen = observed(AT, bases=(BASE, BaseModel("alias", "/models/base")))

    assert isinstance(seen, Observed)
    assert taken(NOTHING, A, seen).adapters["a"].base == BASE.root
    said = answer(NOTHING, Load("alias", "/x"), seen)
    assert said is not None
    assert said.status == 400
