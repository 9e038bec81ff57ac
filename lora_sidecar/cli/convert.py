"""`lora-sidecar config convert`: the config that does what a lora-syncer ConfigMap asks for.

The trap guarded against is a conversion that says less than it leaves out: what has no counterpart is named with the
reason and with what to do instead, and an adapter that cannot be converted is a failure, not a shorter list.

lora-syncer (gateway-api-inference-extension, deprecated in its 1.3.0 and deleted since) read `vLLMLoRAConfig`: host,
port, name, defaultBaseModel, ensureExist and ensureNotExist, the last two each with models of id, source and
base-model.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml
from msgspec import Struct

from lora_sidecar.cli.inject.manifests.write import block
from lora_sidecar.config.load import parse
from lora_sidecar.config.values import Fault, adapter_path, label, server_url
from lora_sidecar.core.errors import ConfigError

BAD_DATA: Final = 65
NO_INPUT: Final = 66

_KEY: Final = "vLLMLoRAConfig"
_KNOWN: Final = frozenset({"host", "port", "name", "defaultBaseModel", "ensureExist", "ensureNotExist"})
_KNOWN_OF_A_MODEL: Final = frozenset({"id", "source", "base-model"})
_LONGEST_NAME: Final = 256
_Parser = TypeVar("_Parser", bound=argparse.ArgumentParser)


class Converted(Struct, frozen=True):
    """A config as text, what was left out of it and why, and what kept it from being whole (then the text is empty)."""

    text: str
    left_out: tuple[str, ...]
    problems: tuple[str, ...]


def add_parser(actions: argparse._SubParsersAction[_Parser]) -> None:
    """Add `convert` to the actions of `config`."""
    action = actions.add_parser(
        "convert",
        help="print the config that does what a lora-syncer ConfigMap asks for",
        description="Prints our config on stdout, and on stderr what has no counterpart in it.",
    )
    action.add_argument("file", help="the ConfigMap, or the file in it; - for stdin")


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code: 0 done, 65 not to be converted, 66 not to be read."""
    path: str = options.file
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        print(f"read {path}: {error.strerror or error}", file=sys.stderr)
        return NO_INPUT
    converted = convert(data)
    for sentence in converted.left_out:
        print(f"{path}: {sentence}", file=sys.stderr)
    for sentence in converted.problems:
        print(f"{path}: problem: {sentence}", file=sys.stderr)
    if converted.problems:
        return BAD_DATA
    sys.stdout.write(converted.text)
    return 0


def advice(data: bytes, path: str) -> str | None:
    """Return what to do with a file that is lora-syncer's where a config of ours should be; None for any other file."""
    if not re.search(rb"(?m)^[ \t\"']*vLLMLoRAConfig[\"']?[ \t]*:", data):
        return None
    return (
        f"this is a config of lora-syncer: `lora-sidecar config convert {path}` prints one of ours that does the same"
    )


def convert(data: bytes) -> Converted:
    """Return the config that does what the bytes of a lora-syncer file, or of a ConfigMap with one, ask for."""
    try:
        found = list(_find(yaml.load_all(data.decode("utf-8-sig"), Loader=yaml.BaseLoader)))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        return _failed(f"is not YAML: {' '.join(str(error).split())[:200]}")
    if not found:
        return _failed(f"has no {_KEY}: neither at its top nor in a ConfigMap's data")
    if len(found) > 1:
        return _failed(f"has {len(found)} {_KEY}: convert one ConfigMap at a time")
    if not isinstance(found[0], dict):
        return _failed(f"{_KEY} is no mapping")
    return _Conversion(found[0]).result()


def _failed(problem: str) -> Converted:
    return Converted("", (), (problem,))


def _find(documents: Iterator[Any]) -> Iterator[Any]:
    """Find each of their configs in documents: at the top, or in a text of a ConfigMap."""
    for document in documents:
        if not isinstance(document, dict):
            continue
        if _KEY in document:
            yield document[_KEY]
        elif isinstance(document.get("items"), list):
            yield from _find(iter(document["items"]))
        elif document.get("kind") == "ConfigMap" and isinstance(document.get("data"), dict):
            for text in document["data"].values():
                if isinstance(text, str) and _KEY in text:
                    yield from _find(yaml.load_all(text, Loader=yaml.BaseLoader))


class _Conversion:
    """One config of theirs, turned into one of ours."""

    def __init__(self, theirs: dict[str, Any]) -> None:
        self._theirs = theirs
        self._left_out: list[str] = []
        self._problems: list[str] = []

    def result(self) -> Converted:
        """Convert it."""
        server = self._server()
        wanted = self._models("ensureExist")
        unwanted = self._models("ensureNotExist")
        adapters = [
            {"name": name, "path": path}
            for name, path in wanted.items()
            if name not in unwanted and self._is_path(name, path)
        ]
        for name in unwanted:
            self._leave_out_unwanted(name, in_both=name in wanted)
        self._leave_out_base_models()
        for key in sorted(self._theirs.keys() - _KNOWN):
            self._left_out.append(f"{key}: lora-syncer has no such key either")
        if self._problems:
            return Converted("", tuple(self._left_out), tuple(self._problems))
        document: dict[str, Any] = {"servers": [server]} | ({"adapters": adapters} if adapters else {})
        text = f"# Converted from a lora-syncer config.\n{block(document, indented=True)}"
        try:
            parse(text.encode(), "the converted config")
        except ConfigError as error:
            return Converted("", tuple(self._left_out), tuple(f"{one.key} {one.rule}" for one in error.problems))
        return Converted(text, tuple(self._left_out), ())

    def _server(self) -> dict[str, str]:
        host, port = self._text("host") or "127.0.0.1", self._text("port") or "8000"
        url = server_url(f"http://{f'[{host}]' if ':' in host else host}:{port}")
        if isinstance(url, Fault):
            self._problems.append(f"host and port: http://{host}:{port} {url.rule}")
            url = ""
        name = self._text("name")
        if not name or isinstance(label(name), Fault):
            if name:
                self._left_out.append(
                    f"name: {name} cannot name a server here, where it is part of a file's name: vllm"
                )
            name = "vllm"
        return {"name": name, "url": url}

    def _text(self, key: str) -> str:
        value = self._theirs.get(key, "")
        if not isinstance(value, str):
            self._problems.append(f"{key}: must be one word")
            return ""
        return value.strip()

    def _models(self, key: str) -> dict[str, str]:
        """Return the path of each model of a list, by its name."""
        section = self._theirs.get(key) or {}
        listed = (section.get("models") or []) if isinstance(section, dict) else None
        if not isinstance(listed, list):
            self._problems.append(f"{key}: has no list of models")
            return {}
        found: dict[str, str] = {}
        for index, model in enumerate(listed):
            where = f"{key}.models[{index}]"
            name, path = (model.get("id"), model.get("source", "")) if isinstance(model, dict) else (None, "")
            if not isinstance(name, str) or not isinstance(path, str) or not 0 < len(name.strip()) <= _LONGEST_NAME:
                self._problems.append(f"{where}: has no id and source that are words")
                continue
            for other in sorted(model.keys() - _KNOWN_OF_A_MODEL):
                self._left_out.append(f"{where}.{other}: lora-syncer has no such key either")
            if found.setdefault(name.strip(), path) != path:
                self._problems.append(f"{where}: {name} is given twice with two sources")
        return found

    def _is_path(self, name: str, path: str) -> bool:
        fault = adapter_path(path)
        if isinstance(fault, Fault):
            self._problems.append(f"ensureExist: the source of {name} ({path}) {fault.rule}")
            return False
        return True

    def _leave_out_unwanted(self, name: str, *, in_both: bool) -> None:
        if in_both:
            self._left_out.append(
                f"{name}: is in both lists, so lora-syncer did nothing about it, and it is not declared"
            )
        else:
            self._left_out.append(
                f"ensureNotExist: {name} is not declared, which does not unload it where it is loaded: "
                f"`lora-sidecar adapters unload {name}` does, once, and it is not loaded again"
            )

    def _leave_out_base_models(self) -> None:
        section = self._theirs.get("ensureExist")
        models = section.get("models") if isinstance(section, dict) else None
        listed = [model for model in models if isinstance(model, dict)] if isinstance(models, list) else []
        given = [self._theirs.get("defaultBaseModel"), *(model.get("base-model") for model in listed)]
        names = {name for name in given if isinstance(name, str) and name}
        if names:
            self._left_out.append(
                f"base models ({', '.join(sorted(names))}): vLLM ignores that field of a load. To have nothing loaded "
                "unless that model is served, set base_model of the server to a name that /v1/models lists"
            )
