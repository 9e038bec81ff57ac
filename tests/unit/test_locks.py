"""What is said of a lock file that is not complete, and how everything is installed from those that are."""

from __future__ import annotations

import re
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from scripts.locks import LockError, Pin, Release, lacking, markers_of, pinned, read_left_out, read_pins
from scripts.locks_check import ENVIRONMENTS, HERE, Project

ROOT = Path(__file__).parents[2]
MARKERS = markers_of("3.12.1")
# Nothing of these is built but on a machine for which there are no wheels.
ALL_WHEELS = ("locks/runtime.txt", "locks/build.txt")


def releases(*lines: str) -> dict[str, Release]:
    """Releases from lines such as `beta 1.0: gamma; extra == "more"`; what they require is parted by commas."""
    found = {}
    for line in lines:
        head, _, required = line.partition(":")
        name, version = head.split()
        found[name] = Release(name, version, tuple(map(Requirement, filter(None, required.split(",")))))
    return found


def lacks(*lines: str, wanted: tuple[str, ...] = (), left_out: frozenset[str] = frozenset()) -> list[str]:
    """What these releases lack on Python 3.12.1."""
    return lacking(releases(*lines), map(Requirement, wanted), MARKERS, left_out)


def test_each_pin_that_is_taken_out_of_a_lock_is_missed() -> None:
    """The environment of these tests lacks nothing, and without any one of its packages it lacks something."""
    project = Project(ROOT)
    environment = ENVIRONMENTS[1]
    markers = markers_of(f"{HERE}.99")
    pins = pinned((pin for name in environment.locks for pin in project.pins(name)), [markers])
    whole = {}
    for pin in pins:
        installed = distribution(pin.name)
        requires = tuple(map(Requirement, installed.requires or ()))
        pythons = str(installed.metadata.json.get("requires_python", ""))
        whole[pin.name] = Release(pin.name, installed.version, requires, pythons)
    assert len(whole) > 40
    assert lacking(whole, project.wanted(environment), markers) == []
    missed = [
        name
        for name in whole
        if lacking({k: v for k, v in whole.items() if k != name}, project.wanted(environment), markers)
    ]
    assert missed == list(whole)


def test_package_that_only_an_extra_requires() -> None:
    """An extra that a locked package asks for counts like any requirement, and so do the extras that it asks for."""
    beta = 'beta 1.0: gamma[most]; extra == "more", zeta; extra == "less"'
    gamma = 'gamma 1.0: delta; extra == "most"'
    assert lacks("alpha 1.0: beta", beta) == []
    assert lacks("alpha 1.0: beta[More]", beta) == [
        'beta[more] requires gamma[most]; extra == "more", and gamma is not locked'
    ]
    assert lacks("alpha 1.0: beta[more]", beta, gamma) == [
        'gamma[most] requires delta; extra == "most", and delta is not locked'
    ]
    assert lacks("alpha 1.0", wanted=("alpha[all]",)) == []
    assert lacks('alpha 1.0: beta; extra == "all"', wanted=("alpha[all]",)) == [
        'alpha[all] requires beta; extra == "all", and beta is not locked'
    ]


def test_package_that_is_required_by_its_own_extra() -> None:
    """An extra that names others of the same package is followed once, and comes to an end."""
    alpha = 'alpha 1.0: alpha[one]; extra == "all", alpha[all]; extra == "one", beta; extra == "one"'
    assert lacks(alpha, wanted=("alpha[all]",)) == ['alpha[one] requires beta; extra == "one", and beta is not locked']


def test_release_that_nobody_asked_for() -> None:
    """A lock with another release than is required is not complete; a pre-release that is locked is meant."""
    assert lacks("alpha 1.0: beta>=2", "beta 1.9") == ["alpha requires beta>=2, and 1.9 is locked"]
    assert lacks("alpha 1.0: beta>=2", "beta 2.1rc1") == []
    assert lacks("beta 1.9", wanted=("beta<1", "Gamma")) == [
        "pyproject.toml requires Gamma, and gamma is not locked",
        "pyproject.toml requires beta<1, and 1.9 is locked",
    ]


def test_requirement_of_another_python_or_system() -> None:
    """What is required elsewhere alone need not be locked for here."""
    line = 'alpha 1.0: beta; python_version < "3.12", gamma; sys_platform == "win32"'
    assert lacks(line) == []
    assert lacking(releases(line), (), markers_of("3.11.0")) == [
        'alpha requires beta; python_version < "3.12", and beta is not locked'
    ]


def test_release_that_does_not_run_on_a_python() -> None:
    """A lock that an installer of that Python refuses is not complete."""
    old = {"alpha": Release("alpha", "1.0", (), "<3.12")}
    assert lacking(old, (), markers_of("3.11.99")) == []
    assert lacking(old, (), MARKERS) == ["alpha 1.0 requires Python <3.12"]


def test_package_that_is_left_out_on_purpose() -> None:
    """A lock may say what it leaves out, and that alone is not missed."""
    left_out = read_left_out("# Why.\n# Left out: beta, Delta_One\nalpha==1.0\n")
    assert left_out == {"beta", "delta-one"}
    assert lacks("alpha 1.0: beta, gamma, delta.one", left_out=left_out) == [
        "alpha requires gamma, and gamma is not locked"
    ]


def test_lines_of_a_lock() -> None:
    """A pin has its hashes and its marker; names are compared as an index compares them."""
    first, second = read_pins(
        "# a comment\nPyYAML==6.0 ; python_full_version < '3.13' \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n"
        "pyyaml==6.1 ; python_full_version >= '3.13'\n"
    )
    assert (first.name, first.version, first.hashes) == ("pyyaml", "6.0", ("sha256:aa", "sha256:bb"))
    assert pinned([first, second], [MARKERS]) == [first]
    assert pinned([first, second], [markers_of("3.13.0"), markers_of("3.13.99")]) == [second]
    with pytest.raises(LockError, match=r"pyyaml is locked twice for Python 3.12: 6.0 and 6.1"):
        pinned([first, Pin("pyyaml", "6.1")], [MARKERS])


@pytest.mark.parametrize("line", ["alpha", "alpha>=1", "alpha==1,<2", "alpha[more]==1", "-r other.txt", "alpha==1.*"])
def test_line_that_pins_nothing(line: str) -> None:
    """What leaves a choice to the installer is refused, with the line."""
    with pytest.raises(LockError, match=re.escape(line)):
        read_pins(f"beta==1.0\n{line}\n")


@pytest.mark.parametrize("file", ["Makefile", "Dockerfile", "scripts/vllm-env.sh"])
def test_every_install_from_a_lock_takes_it_as_it_is(file: str) -> None:
    """Whoever installs from a lock resolves nothing, not even to build; and checks its files where it has hashes."""
    text = (ROOT / file).read_text().replace("\\\n", " ").replace('", "', " ")
    installs = [line for line in text.splitlines() if re.search(r"\binstall\b.* -r ", line)]
    assert installs
    for line in installs:
        assert "--no-deps" in line, line
        assert "--no-build-isolation" in line or "--only-binary" in line or line.endswith(ALL_WHEELS), line
        assert "--require-hashes" in line or file == "scripts/vllm-env.sh", line
