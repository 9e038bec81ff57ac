from __future__ import annotations

from msgspec.structs import replace

from lora_sidecar.config.settings import BackoffConfig, ServerHealthConfig
from lora_sidecar.core.conditions import Condition, ConditionType
from lora_sidecar.core.observation import EngineActivity, Reason
from lora_sidecar.core.outcomes import FailureKind
from lora_sidecar.reconcile.backoff import Now
from lora_sidecar.reconcile.outage import Phase, ServerState
from lora_sidecar.reconcile.server_health import PROVEN_AFTER, Health, examine, failing, suspects_hang
from lora_sidecar.reconcile.server_health import conditions_of as health_conditions
from tests.support.core import failure

NOW = 1_000.0
RULE = BackoffConfig()
CLOCK = Now(NOW, 0.0)
GONE = failure(FailureKind.FILES, "no files")
DEAD = failure(FailureKind.ENGINE, "dead", 500)


HEALTH = ServerHealthConfig()
UP = ServerState(Phase.UP, last_good=1.0)
DOWN = ServerState(Phase.DOWN, reason=Reason.REFUSED, last_good=1.0)


QUIET = EngineActivity()
WELL = Health()


def looked(
    before: Health, server: ServerState, pulse: EngineActivity = QUIET, now: float = NOW, *, halted: bool = False
) -> Health:
    """The health after one more heartbeat."""
    return examine(before, server, pulse, HEALTH, now, halted=halted)


def test_silence_is_counted_from_what_is_owed_answered_or_slept() -> None:
    """Whichever was last; without a debt there is none, and an old one lapses."""
    hung = HEALTH.hung_after
    owed = EngineActivity(open_since=NOW - hung, owed_since=NOW - hung)

    def hangs(pulse: EngineActivity, before: Health = WELL, server: ServerState = UP) -> bool:
        return suspects_hang(before, server, pulse, HEALTH, NOW)

    assert hangs(owed)
    assert not hangs(owed, server=DOWN)
    assert not hangs(replace(owed, owed_since=NOW - hung + 0.1))
    assert not hangs(replace(owed, answered_at=NOW - hung + 0.1))
    assert not hangs(owed, Health(halted_at=NOW - hung + 0.1))
    assert not hangs(EngineActivity())
    given_up = EngineActivity(owed_since=NOW - 2 * hung, given_up_at=NOW - hung + 0.1)
    assert hangs(given_up)
    assert not hangs(replace(given_up, given_up_at=NOW - hung))
    exact = replace(HEALTH, hung_after=0.5)
    assert not suspects_hang(Health(), UP, EngineActivity(), exact, NOW)
    assert not suspects_hang(Health(), UP, replace(given_up, given_up_at=NOW - hung), exact, NOW)


def test_what_is_seen_wrong_is_dated() -> None:
    """From its first sight on, and no longer than it lasts."""
    first = looked(Health(), DOWN, now=10.0)

    assert first.refused_since == 10.0
    assert looked(first, DOWN, now=11.0).refused_since == 10.0
    late = looked(first, replace(DOWN, reason=Reason.TIMEOUT), now=12.0)
    assert (late.refused_since, late.mute_since) == (10.0, None)
    mute = looked(Health(), replace(DOWN, reason=Reason.TIMEOUT), now=12.0)
    assert (mute.refused_since, mute.mute_since, mute.dead_since) == (None, 12.0, None)
    dead = looked(Health(), replace(DOWN, reason=Reason.ENGINE_DEAD), now=12.0)
    assert (dead.refused_since, dead.mute_since, dead.dead_since) == (None, None, 12.0)
    assert looked(first, UP, now=13.0).refused_since is None
    assert looked(first, replace(UP, reason=Reason.REFUSED), now=13.0).refused_since is None
    assert looked(Health(), UP, now=13.0, halted=True).halted_at == 13.0
    assert looked(Health(halted_at=5.0), UP, now=13.0).halted_at == 5.0


def test_a_wedge_is_proven_by_an_open_load_or_by_a_dead_engines_word() -> None:
    """At the very moment of its half minute."""
    dead = replace(DOWN, reason=Reason.ENGINE_DEAD)
    said = looked(Health(dead_since=NOW - PROVEN_AFTER), dead)
    assert (said.wedged, said.proven) == ("it says that its engine is dead, and does not end", True)
    assert looked(Health(dead_since=NOW - PROVEN_AFTER + 0.1), dead).wedged == ""
    refused = Health(refused_since=NOW - PROVEN_AFTER)
    load = EngineActivity(open_since=1.0, owed_since=1.0)
    found = looked(refused, DOWN, load)
    why = "it refuses connections, and a load that it was sent before is still open: its process never ended"
    assert (found.wedged, found.hung, found.proven) == (why, "", True)
    assert looked(Health(refused_since=NOW - PROVEN_AFTER + 0.1), DOWN, load).wedged == ""
    assert looked(refused, DOWN).wedged == ""
    kept = looked(found, DOWN, now=NOW + 1)
    assert (kept.wedged, kept.proven) == (why, False)
    assert looked(found, DOWN, EngineActivity(ended_by_server=True)).wedged == ""
    assert looked(found, UP).wedged == ""


def test_a_server_that_refuses_for_very_long_is_wedged() -> None:
    """If it ever answered, and where the config says how long."""
    rule = replace(HEALTH, wedged_after=600.0)
    long = Health(refused_since=NOW - 600.0)

    found = examine(long, DOWN, EngineActivity(), rule, NOW, halted=False)
    assert found.wedged == (
        "it answered once and has refused every connection for 10m; or its container is not started"
    )
    assert found.proven
    assert (
        examine(replace(long, refused_since=NOW - 599.9), DOWN, EngineActivity(), rule, NOW, halted=False).wedged == ""
    )
    assert examine(long, replace(DOWN, last_good=None), EngineActivity(), rule, NOW, halted=False).wedged == ""
    assert examine(long, DOWN, EngineActivity(), replace(rule, wedged_after=None), NOW, halted=False).wedged == ""


def test_a_hang_is_told_by_what_is_silent() -> None:
    """The engine behind a healthy port, or the port itself where it ever answered."""
    hung = HEALTH.hung_after
    silent = looked(Health(), UP, EngineActivity(open_since=NOW - hung, owed_since=NOW - hung))
    mute = replace(DOWN, reason=Reason.TIMEOUT)

    assert silent.hung == "its /health answers, and its engine has answered no load and no probe for 5m"
    assert silent.proven
    found = looked(Health(mute_since=NOW - hung), mute)
    assert found.hung == "it takes connections and has answered nothing for 5m"
    assert found.proven
    assert looked(Health(mute_since=NOW - hung + 0.1), mute).hung == ""
    assert looked(Health(mute_since=NOW - hung), replace(mute, last_good=None)).hung == ""
    assert not looked(Health(), UP).proven
    assert not looked(Health(refused_since=NOW - 1), DOWN).proven


def test_a_container_is_ended_only_for_what_is_proven() -> None:
    """Wedged before hung; each has its condition, with what to do."""
    ends = "end its container (kill its process with SIGKILL); a livenessProbe that asks /serverz does that by itself"

    assert failing(Health(wedged="w", hung="h", proven=True)) == "w"
    assert failing(Health(hung="h", proven=True)) == "h"
    assert failing(Health(wedged="w")) == ""
    assert health_conditions(Health(wedged="w", hung="h")) == (Condition(ConditionType.SERVER_WEDGED, "w", ends),)
    assert health_conditions(Health(hung="h")) == (Condition(ConditionType.SERVER_HUNG, "h", ends),)
    assert health_conditions(Health()) == ()
