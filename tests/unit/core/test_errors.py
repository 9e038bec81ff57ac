from __future__ import annotations

import pickle

from lora_sidecar.core.errors import CheckpointError, ConfigError, Problem, SidecarError


def test_an_error_says_what_was_attempted_on_what_and_why() -> None:
    """With a hint where there is one."""
    assert str(SidecarError("open", "/x", "no such file")) == "open /x: no such file"
    assert str(SidecarError("open", "/x", "no such file", "mount it")) == "open /x: no such file (mount it)"


def test_an_error_survives_the_way_between_processes() -> None:
    """With all of its parts."""
    error = CheckpointError("open", "/x", "no such file", "mount it")
    copy = pickle.loads(pickle.dumps(error))

    assert copy.args == error.args == ("open", "/x", "no such file", "mount it")
    assert (copy.attempted, copy.target, copy.cause, copy.hint) == error.args
    assert SidecarError("open", "/x", "no such file").args == ("open", "/x", "no such file", "")


def test_a_config_error_names_every_problem() -> None:
    """In one line."""
    error = ConfigError("c.yaml", (Problem(3, "a.b", "is bad", "mend it"), Problem(0, "", "is empty")))

    assert str(error) == "read config c.yaml: line 3: a.b: is bad (mend it); is empty"
    assert error.source == "c.yaml"
