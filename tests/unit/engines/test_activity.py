from __future__ import annotations

from lora_sidecar.engines.activity import COUNTS, STILL, IdleDetector


def test_a_server_that_has_answered_nothing_yet_is_idle_at_once() -> None:
    """Just back, with not a token counted: it is not waited for."""
    detector = IdleDetector()
    detector.note(10.0, 0.0, 0.0)
    assert detector.is_idle(10.0)


def test_a_server_that_does_not_count_tokens_is_idle_without_requests() -> None:
    """Where there is no count, the requests under way are all that tells."""
    detector = IdleDetector()
    detector.note(10.0, 0.0, None)
    assert detector.is_idle(10.0)


def test_between_two_requests_it_is_not_idle() -> None:
    """No request runs, and tokens were counted since the last look: the next request is about to come."""
    detector = IdleDetector()
    for number in range(8):
        detector.note(10.0 + number * STILL / 2, 0.0, 100.0 + number)
        assert not detector.is_idle(10.0 + number * STILL / 2)


def test_idle_once_the_count_has_stood_still() -> None:
    """A second without a token, and it is idle from that look on; the first token ends that."""
    detector = IdleDetector()
    detector.note(10.0, 0.0, 100.0)
    detector.note(10.0 + 0.9 * STILL, 0.0, 100.0)
    assert not detector.is_idle(10.0 + 0.9 * STILL)
    detector.note(10.0 + STILL, 0.0, 100.0)
    assert detector.is_idle(10.0 + STILL)
    detector.note(11.0 + STILL, 0.0, 101.0)
    assert not detector.is_idle(11.0 + STILL)


def test_requests_that_run_or_are_unsaid_are_no_idleness() -> None:
    """A request that runs counts at once, and so does an answer that does not say."""
    detector = IdleDetector()
    for requests in (1.0, None):
        detector.note(10.0, 0.0, 0.0)
        detector.note(11.0, requests, 0.0)
        assert not detector.is_idle(11.0)


def test_a_new_life_begins_with_nothing_counted() -> None:
    """After a restart the count is zero again, and the server idle at once."""
    detector = IdleDetector()
    detector.note(10.0, 0.0, 100.0)
    detector.note(10.1, 0.0, 0.0)
    assert detector.is_idle(10.1)


def test_an_answer_counts_for_a_second() -> None:
    """Requests arrive unasked: then the server is to be asked again, and may be busy until it answers."""
    detector = IdleDetector()
    assert detector.is_due(10.0)
    detector.note(10.0, 0.0, 0.0)
    assert detector.is_idle(10.0 + 0.9 * COUNTS)
    assert not detector.is_due(10.0 + 0.9 * COUNTS)
    assert not detector.is_idle(10.0 + COUNTS)
    assert detector.is_due(10.0 + COUNTS)


def test_a_server_that_does_not_answer_counts_as_busy() -> None:
    """It is not asked over and over."""
    detector = IdleDetector()
    detector.note(10.0, 0.0, 0.0)
    detector.ask(10.5)
    assert not detector.is_idle(10.6)
    assert not detector.is_due(11.4)
    assert detector.is_due(11.5)
