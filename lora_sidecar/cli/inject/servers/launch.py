"""The commands that a container runs, word by word: from `command` and `args`, and from inside `sh -c` texts.

The trap guarded against is a word that only looks like a value: `--port $PORT` says nothing unless PORT is given in
the manifest. What cannot be resolved is marked inside the word, so that nobody takes it for a text. This is a reading
of the usual ways to start a server, not a shell: what it does not understand it does not find.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping as Map
from typing import Final

from msgspec import Struct

from lora_sidecar.cli.inject.manifests.value import Path, Value, entries, text

UNKNOWN: Final = "\0"
"""Stands in a word for what is not in the manifest."""

_SHELLS: Final = frozenset({"sh", "bash", "dash", "ash", "zsh"})
_OPERATORS: Final = ";&|()<>\n"
_CONTINUED: Final = re.compile(r"\\\r?\n")
_COMMENT: Final = re.compile(r"(?m)(?:^|(?<=[ \t]))#[^\n\"']*$")
_READ_FILE: Final = re.compile(r"\$\((?:cat\s+|<\s*)([^\s()$]+)\)")
_REFERENCE: Final = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")
_VARIABLE: Final = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)(?::?-([^{}]*))?\}|([A-Za-z_][A-Za-z0-9_]*))")
_SUBSTITUTION: Final = re.compile(r"\$\(\([^()]*\)\)|\$\([^()]*\)|`[^`]*`")
_ASSIGNMENT: Final = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)


class Command(Struct, frozen=True):
    """One command; `place` is the path, inside the container, of the list or of the shell text that it stands in."""

    words: tuple[str, ...]
    place: Path
    assigned: Map[str, str]


def of_secret(name: str) -> str:
    """Return the mark of a variable whose value comes from elsewhere (a Secret, most often)."""
    return f"{UNKNOWN}env:{name}{UNKNOWN}"


def of_file(path: str) -> str:
    """Return the mark of what a file holds."""
    return f"{UNKNOWN}file:{path}{UNKNOWN}"


def marked(word: str, what: str) -> str | None:
    """Return the name in a word that is nothing but the mark `env` or `file`, or None."""
    begin = f"{UNKNOWN}{what}:"
    return word[len(begin) : -1] if word.startswith(begin) and word.find(UNKNOWN, 1) == len(word) - 1 else None


def environment(container: Map[str, Value]) -> dict[str, str]:
    """Return a container's variables; those whose values are not in the manifest are marked."""
    found: dict[str, str] = {}
    for one in entries(container.get("env")):
        name, value = text(one.get("name")), one.get("value")
        found[name] = of_secret(name) if "valueFrom" in one else _dereference(text(value), found)
    return found


def commands(container: Map[str, Value]) -> tuple[Command, ...]:
    """Return the commands of a container, those of a shell text one by one; none where it leaves them to its image."""
    known = environment(container)
    words, places = [], []
    for key in ("command", "args"):
        listed = container.get(key)
        for index, word in enumerate(listed if isinstance(listed, list) else []):
            words.append(text(word))
            places.append((key, index))
    script = _script(words)
    if script is not None:
        return tuple(_in_shell(words[script], places[script], known))
    place = ("args",) if container.get("args") else ("command",)
    return (Command(tuple(_dereference(word, known) for word in words), place, {}),) if words else ()


def _script(words: list[str]) -> int | None:
    """Return the index of the text that a shell is given to run, if a shell is what is run."""
    for index, word in enumerate(words[:-1]):
        if word.rpartition("/")[2] in _SHELLS and index in {0, 1, 2}:
            for option in range(index + 1, len(words) - 1):
                if re.fullmatch(r"-[A-Za-z]*c", words[option]):
                    return option + 1
                if not words[option].startswith(("-", "+")) and not re.fullmatch("[-+][A-Za-z]*o", words[option - 1]):
                    break
    return None


def _in_shell(script: str, place: Path, known: Map[str, str]) -> list[Command]:
    script = _CONTINUED.sub(" ", script)
    script = _COMMENT.sub("", script)
    script = _READ_FILE.sub(lambda found: of_file(found[1]), script)
    script = _REFERENCE.sub(lambda found: known.get(found[1], UNKNOWN), script)
    while (plainer := _SUBSTITUTION.sub(UNKNOWN, script)) != script:
        script = plainer
    lexer = shlex.shlex(script, posix=True, punctuation_chars=_OPERATORS)
    lexer.whitespace = " \t\r"
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        tokens = list(lexer)
    except ValueError:  # a quote without an end: no shell would run it
        return []
    variables = dict(known)
    found: list[Command] = []
    words: list[str] = []
    for token in [*tokens, "\n"]:
        if token.strip(_OPERATORS):
            words.append(_expand(token, variables))
            continue
        assigned, rest = _assignments(words)
        if rest:
            found.append(Command(tuple(rest), place, {**variables, **assigned}))
        else:
            variables |= assigned
        words = []
    return found


def _assignments(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Return what is assigned before a command or by it (`export`), and the command."""
    rest = words[1:] if words[:1] == ["export"] else words
    assigned: dict[str, str] = {}
    while rest and (found := _ASSIGNMENT.fullmatch(rest[0])):
        assigned[found[1]] = found[2]
        rest = rest[1:]
        if rest[:1] == ["env"]:
            rest = rest[1:]
    return assigned, rest


def _dereference(word: str, known: Map[str, str]) -> str:
    """Return a word with `$(NAME)` replaced, as the kubelet does it."""
    return _REFERENCE.sub(lambda found: known.get(found[1], UNKNOWN), word)


def _expand(word: str, known: Map[str, str]) -> str:
    """Return a word with `$NAME` and `${NAME:-default}` replaced, as a shell does it."""

    def value(found: re.Match[str]) -> str:
        default: str | None = found[2]
        return known.get(found[1] or found[3], UNKNOWN if default is None else default)

    expanded = _VARIABLE.sub(value, word)
    return UNKNOWN if "$" in expanded and UNKNOWN not in expanded else expanded
