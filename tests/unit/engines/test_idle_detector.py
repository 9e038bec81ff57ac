from __future__ import annotations

import math

from lora_sidecar.engines.stillness import STILL, IdleDetector

NEVER = -math.inf


def test_a_server_that_has_answered_nothing_yet_is_idle_at_once() -> None:
    """Just back, with not a token counted: it is not waited for."""
    stillness = IdleDetector()
    stillness.note(10.0, 0.0, 0.0)
    assert stillness.seen_at == 10.0


def test_a_server_that_does_not_count_tokens_is_idle_without_requests() -> None:
    """Where there is no count, the requests under way are all that tells."""
    stillness = IdleDetector()
    stillness.note(10.0, 0.0, None)
    assert stillness.seen_at == 10.0


def test_between_two_requests_it_is_not_idle() -> None:
    """No request runs, and tokens were counted since the last look: the next request is about to come."""
    stillness = IdleDetector()
    for number in range(8):
        stillness.note(10.0 + number * STILL / 2, 0.0, 100.0 + number)
        assert stillness.seen_at == NEVER


def test_idle_once_the_count_has_stood_still() -> None:
    """A second without a token, and it is idle from that look on; the first token ends that."""
    stillness = IdleDetector()
    stillness.note(10.0, 0.0, 100.0)
    stillness.note(10.0 + 0.9 * STILL, 0.0, 100.0)
    assert stillness.seen_at == NEVER
    stillness.note(10.0 + STILL, 0.0, 100.0)
    assert stillness.seen_at == 10.0 + STILL
    stillness.note(11.0 + STILL, 0.0, 101.0)
    assert stillness.seen_at == NEVER


def test_requests_that_run_or_are_unsaid_are_no_idleness() -> None:
    """A request that runs counts at once, and so does an answer that does not say."""
    stillness = IdleDetector()
    for requests in (1.0, None):
        stillness.note(10.0, 0.0, 0.0)
        stillness.note(11.0, requests, 0.0)
        assert stillness.seen_at == NEVER


def test_a_new_life_begins_with_nothing_counted() -> None:
    """After a restart the count is zero again, and the server idle at once."""
    stillness = IdleDetector()
    stillness.note(10.0, 0.0, 100.0)
    stillness.note(10.1, 0.0, 0.0)
    assert stillness.seen_at == 10.1
