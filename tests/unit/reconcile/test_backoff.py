from __future__ import annotations

import pytest

from lora_sidecar.config.settings import BackoffConfig
from lora_sidecar.core.outcomes import FailureKind
from lora_sidecar.reconcile.backoff import delay

BACKOFF = BackoffConfig(initial=1.0, max=60.0, parked=600.0)
ALMOST_ONE = 0.999999


def test_wait_doubles_to_its_cap() -> None:
    """One second, then twice as long after each failure, up to a minute."""
    waits = [delay(n, FailureKind.FILES, BACKOFF, 0.0) for n in range(1, 9)]

    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


@pytest.mark.parametrize("kind", [k for k in FailureKind if k is not FailureKind.ADAPTER])
@pytest.mark.parametrize("failures", [1, 3, 100])
def test_half_of_a_wait_is_certain_and_half_is_chance(kind: FailureKind, failures: int) -> None:
    """Nobody returns at once, and pods that failed together do not return together."""
    least, most = delay(failures, kind, BACKOFF, 0.0), delay(failures, kind, BACKOFF, ALMOST_ONE)

    assert 0 < least < most < 2 * least
    assert delay(failures, kind, BACKOFF, 0.5) == pytest.approx(1.5 * least)


@pytest.mark.parametrize("failures", [1, 2, 50])
def test_refused_for_what_it_is_waits_as_parked(failures: int) -> None:
    """Trying again soon cannot help an adapter whose rank is too high, the first time as little as the fiftieth."""
    assert delay(failures, FailureKind.ADAPTER, BACKOFF, 0.0) == 300.0


def test_failing_for_ever_overflows_nothing() -> None:
    """A million failures in a row wait as long as ten."""
    assert delay(10**6, FailureKind.FILES, BACKOFF, 0.0) == 30.0


@pytest.mark.parametrize("failures", [0, -1])
def test_no_failure_waits_as_one(failures: int) -> None:
    """A count below one never shortens the first wait."""
    assert delay(failures, FailureKind.FILES, BACKOFF, 0.0) == 0.5


def test_cap_as_small_as_the_start() -> None:
    """A cap that equals the first wait keeps all waits alike."""
    flat = BackoffConfig(initial=2.0, max=2.0)

    assert {delay(n, FailureKind.FILES, flat, 0.0) for n in range(1, 9)} == {1.0}
