"""What a lock file pins, and what an environment that is made of it alone would lack.

The trap is a lock that is complete only on the day it was made, or only for the installer that made it. Extras are
where it hides: a package that asks for `coverage[toml]` is content with a pin for `coverage` in one version of pip and
not in the next. So nothing here asks an installer, or an index: what is locked says itself what it requires.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec import Struct
from packaging.markers import Marker, default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

_LEFT_OUT = re.compile(r"^# Left out: (.+)$", re.MULTILINE)

Markers = Mapping[str, str]
"""The values of markers, by their names."""


class LockError(ValueError):
    """A lock file holds something else than pins; the message has the line."""


class Pin(Struct, frozen=True):
    """One release in a lock file, with the hashes of its files and the condition on which it is installed at all."""

    name: str
    version: str
    hashes: tuple[str, ...] = ()
    marker: Marker | None = None

    def applies(self, markers: Markers) -> bool:
        """Whether an installer takes it there."""
        return self.marker is None or self.marker.evaluate(dict(markers))


class Release(Struct, frozen=True):
    """What a release says of itself: what it requires besides, and which Pythons it runs on."""

    name: str
    version: str
    requires: tuple[Requirement, ...] = ()
    requires_python: str = ""


def markers_of(python: str) -> dict[str, str]:
    """The markers of this machine under another version of Python, such as 3.12.0."""
    major, minor, _ = python.split(".")
    here = {name: str(value) for name, value in default_environment().items()}
    return here | {
        "python_version": f"{major}.{minor}",
        "python_full_version": python,
        "implementation_version": python,
    }


def read_pins(text: str) -> list[Pin]:
    """The pins of a lock file. Raises `LockError` for a line that is neither a comment nor one exact release."""
    lines = (line.strip() for line in text.replace("\\\n", " ").splitlines())
    return [_read_pin(line) for line in lines if line and not line.startswith("#")]


def _read_pin(line: str) -> Pin:
    requirement_text, *hashes = line.split(" --hash=")
    try:
        requirement = Requirement(requirement_text)
    except InvalidRequirement as error:
        raise LockError(f"read lock file: {line!r} is no requirement: {error}") from error
    specifiers = list(requirement.specifier)
    exact = len(specifiers) == 1 and specifiers[0].operator == "==" and not specifiers[0].version.endswith(".*")
    if not exact or requirement.extras:
        raise LockError(f"read lock file: {requirement_text!r} does not pin one release (write NAME==VERSION)")
    return Pin(
        canonicalize_name(requirement.name),
        specifiers[0].version,
        tuple(one.strip() for one in hashes),
        requirement.marker,
    )


def pinned(pins: Iterable[Pin], markers: Sequence[Markers]) -> list[Pin]:
    """The pins that apply under any of these markers, each once. Raises `LockError` where a package has two."""
    found: dict[str, Pin] = {}
    for pin in pins:
        if any(pin.applies(one) for one in markers):
            other = found.setdefault(pin.name, pin)
            if other.version != pin.version:
                python = markers[0]["python_version"]
                raise LockError(f"{pin.name} is locked twice for Python {python}: {other.version} and {pin.version}")
    return list(found.values())


def read_left_out(text: str) -> frozenset[str]:
    """The packages that a lock file says it leaves out on purpose: `# Left out: one, another`."""
    return frozenset(canonicalize_name(name) for names in _LEFT_OUT.findall(text) for name in names.split(", "))


def lacking(
    releases: Mapping[str, Release],
    wanted: Iterable[Requirement],
    markers: Markers,
    left_out: frozenset[str] = frozenset(),
) -> list[str]:
    """What an environment of these releases alone, by canonical name, lacks: a sentence for each shortcoming.

    `wanted` is what it is made for. Each requirement counts whose marker holds, those of the extras that anybody asks
    for among them.
    """
    found = []
    for who, requirement in _asked(releases, wanted, markers):
        name = canonicalize_name(requirement.name)
        release = releases.get(name)
        if release is None and name not in left_out:
            found.append(f"{who} requires {requirement}, and {name} is not locked")
        elif release is not None and not requirement.specifier.contains(release.version, prereleases=True):
            found.append(f"{who} requires {requirement}, and {release.version} is locked")
    python = markers["python_full_version"]
    found += [
        f"{release.name} {release.version} requires Python {release.requires_python}"
        for release in releases.values()
        if not SpecifierSet(release.requires_python).contains(python, prereleases=True)
    ]
    return sorted(found)


def _asked(
    releases: Mapping[str, Release], wanted: Iterable[Requirement], markers: Markers
) -> Iterator[tuple[str, Requirement]]:
    """Every requirement that counts, and whose it is."""
    todo = [(name, "") for name in releases]
    for requirement in wanted:
        if _holds(requirement, "", markers):
            yield "pyproject.toml", requirement
            todo += _extras(requirement)
    seen = set()
    while todo:
        name, extra = one = todo.pop()
        if one in seen or name not in releases:
            continue
        seen.add(one)
        for requirement in releases[name].requires:
            # What is required in any case is asked for by the package without its extras.
            if _holds(requirement, extra, markers) and not (extra and _holds(requirement, "", markers)):
                yield f"{name}[{extra}]" if extra else name, requirement
                todo += _extras(requirement)


def _extras(requirement: Requirement) -> list[tuple[str, str]]:
    return [(canonicalize_name(requirement.name), canonicalize_name(extra)) for extra in requirement.extras]


def _holds(requirement: Requirement, extra: str, markers: Markers) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({**markers, "extra": extra})
