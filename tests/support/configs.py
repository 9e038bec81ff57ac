"""Texts of configs, and what is expected of them."""

from __future__ import annotations

import pytest

from lora_sidecar.config.load import parse
from lora_sidecar.core.errors import ConfigError, Problem

SERVER = "servers: [{name: a, url: http://h}]\n"
"""One sound server on line 1, so that a case's own text begins on line 2."""


def problems(text: str | bytes) -> tuple[Problem, ...]:
    """Return the problems that the parser finds in a config."""
    with pytest.raises(ConfigError) as caught:
        parse(text.encode() if isinstance(text, str) else text, "test.yaml")
    return caught.value.problems


def expect(text: str | bytes, *wanted: tuple[int, str, str]) -> None:
    """Assert that exactly the wanted problems are found, each with its line, key and a fragment of its words."""
    found = problems(text)

    assert [(line, key) for line, key, _ in wanted] == [(problem.line, problem.key) for problem in found], found
    for (_, _, fragment), problem in zip(wanted, found, strict=True):
        assert fragment in f"{problem.rule} ({problem.hint})"


def server(**keys: str) -> str:
    """Return a config of one server, each key on a line of its own from line 2."""
    given = {"name": "a", "url": "http://h"} | keys
    return "servers:\n- " + "\n  ".join(f"{key}: {value}" for key, value in given.items()) + "\n"


def adapter(**keys: str) -> str:
    """Return a config of one server and one adapter, each of its keys on a line of its own from line 3."""
    given = {"name": "x", "path": "/x"} | keys
    return f"{SERVER}adapters:\n- " + "\n  ".join(f"{key}: {value}" for key, value in given.items()) + "\n"
