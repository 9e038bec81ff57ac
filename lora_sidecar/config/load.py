"""From a config's file to settings, or to every problem in it.

Guards against a config that is half understood: a misspelt key, a converted value or timing that cannot work together
would otherwise show itself in the outage it was written for. Only `read` touches a file.
"""

from __future__ import annotations

from typing import Any, Final

from msgspec import inspect

from lora_sidecar.config.nodes import MAX_BYTES, compose
from lora_sidecar.config.reader import Reading
from lora_sidecar.config.rules import faults
from lora_sidecar.config.settings import Config
from lora_sidecar.config.values import Fault
from lora_sidecar.core.errors import ConfigError, Problem

MAX_PROBLEMS: Final = 100

_CONFIG: Final = inspect.type_info(Config)
_DEFAULT: Final = Config(servers=())


def read(path: str) -> bytes:
    """The config's bytes, at most one more than a config may have. Raises `ConfigError`."""
    try:
        # pathlib interns the parts of a path, anew each time that the config is looked at.
        with open(path, "rb") as file:  # noqa: PTH123
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(path, (Problem(0, "", f"cannot be read: {reason}", "is it mounted?"),)) from error


def parse(data: bytes, source: str) -> Config:
    """Return the config that the bytes of one YAML file spell; `source` names the file in the error.

    Raises `ConfigError` with every problem found, by line (the first hundred, and how many more there are).
    """
    node, problems = compose(data)
    reading = Reading(Config, problems)
    config: Any = None
    if node is not None:
        config = reading.read(_CONFIG, node)
        for line, path, fault in faults(reading, _DEFAULT):
            reading.object(line, path, fault)
    elif not problems:
        reading.object(0, "", Fault("is empty", "name at least one server under servers"))
    if not reading.problems and isinstance(config, Config):
        return config
    found = sorted(reading.problems, key=lambda problem: (problem.line, problem.key))
    more = len(found) - MAX_PROBLEMS
    if more > 0:
        found[MAX_PROBLEMS:] = [Problem(0, "", f"has {more} more problems", "mend these first")]
    raise ConfigError(source, tuple(found))
