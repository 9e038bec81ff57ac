"""Manifests as people, charts and kubectl write them: the same objects in ever other texts.

The trap guarded against is a generator that writes as our own writer does: indentation, quotes, brackets, comments,
blank lines, line ends and the end of the file are drawn for each key.
"""

from __future__ import annotations

import json
import re
from typing import Any

from hypothesis import strategies as st

Drawn = Any

_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9/._-]*(:[A-Za-z0-9._-]+)*")
_RESERVED = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}
_WORDS = [
    "a",
    "--model",
    "/models/base",
    "x: y",
    "# no comment",
    "it's",
    'say "hi"',
    "{a}",
    "[b]",
    "on",
    "0o7",
    "12:30",
    "é",
]
_COMMENTS = ["# a comment", "#", "# - name: other", "#- {", "# key: |", "#  ---"]
_FOREIGN = [
    "",
    "# only a comment\n",
    "kind: Service\nspec: {ports: [ {port: 80} ]}\n",
    "kind: ConfigMap\ndata:\n  containers: |\n    kind: Deployment\n     --- #\n  b: >+\n    x\n\n\n",
    "\tthis is no YAML: [\n",
    "apiVersion: v1\nkind: Secret\nstringData: {a: 'b''c'}\n...\n",
    "kind: Deployment\nspec: {template: {spec: {containers: [{name: other,image: nginx}]}}}\n",
]


class Writer:
    """Writes values in a style that is drawn."""

    def __init__(self, draw: st.DrawFn, *, explicit_nulls: bool) -> None:
        self._draw = draw
        self._explicit_nulls = explicit_nulls
        self._after_block = False

    def _chance(self, percent: int) -> bool:
        drawn: bool = self._draw(st.integers(0, 99)) < percent
        return drawn

    def _one_of(self, choices: list[Any]) -> Any:
        return self._draw(st.sampled_from(choices))

    def document(self, value: dict[str, Any]) -> list[str]:
        """Return the lines of a document."""
        return self._mapping(value, 0)

    def _margin(self, column: int) -> list[str]:
        """Comments and blank lines above a line of that column."""
        if not self._chance(15):
            return []
        if self._chance(40):
            return [] if self._after_block else [self._draw(st.sampled_from(["", "   "]))]
        indent = self._draw(st.integers(0, column if self._after_block else column + 4))
        return [" " * indent + self._one_of(_COMMENTS)]

    def _tail(self) -> str:
        return f"  {self._one_of(_COMMENTS)}" if self._chance(10) else str(self._one_of(["", "", "", " "]))

    def _mapping(self, value: dict[str, Any], column: int) -> list[str]:
        lines: list[str] = []
        for key, item in value.items():
            lines += self._margin(column)
            lines += self._entry(key, item, column)
        return lines

    def _entry(self, key: str, item: Any, column: int) -> list[str]:
        head = f"{' ' * column}{self._key(key)}:"
        self._after_block = False
        match item:
            case None:
                return [head + (" null" if self._explicit_nulls and self._chance(30) else "") + self._tail()]
            case dict() if item and not self._chance(12):
                return [head + self._tail(), *self._mapping(item, column + self._one_of([2, 2, 4]))]
            case list() if item and not self._chance(12):
                return [head + self._tail(), *self._sequence(item, column + self._one_of([0, 2]))]
            case dict() | list():
                return [f"{head} {self._flow(item, column + 2)}{self._tail()}"]
            case str() if "\n" in item:
                return self._block(head, item, column)
            case _:
                return [f"{head} {self._scalar(item)}{self._tail()}"]

    def _block(self, head: str, text: str, column: int) -> list[str]:
        self._after_block = True
        chomp = "" if text.endswith("\n") else "-"
        indent = " " * (column + self._one_of([2, 3]))
        body = text.removesuffix("\n").split("\n")
        return [f"{head} |{chomp}{self._tail()}", *(f"{indent}{line}" if line else "" for line in body)]

    def _sequence(self, items: list[Any], column: int) -> list[str]:
        lines: list[str] = []
        for item in items:
            lines += self._margin(column)
            gap = self._one_of([1, 1, 1, 3])
            if isinstance(item, dict) and item and not self._chance(12):
                inner = self._mapping(item, column + 1 + gap)
                first = next(
                    index for index, line in enumerate(inner) if line.strip() and not line.strip().startswith("#")
                )
                lines += inner[:first]
                lines.append(f"{' ' * column}-{' ' * gap}{inner[first].lstrip()}")
                lines += inner[first + 1 :]
            elif isinstance(item, str) and "\n" in item:
                lines += self._block(f"{' ' * column}-", item, column)
            else:
                self._after_block = False
                lines.append(f"{' ' * column}-{' ' * gap}{self._flow(item, column + 4)}{self._tail()}")
        return lines

    def _flow(self, value: Any, column: int) -> str:
        space = self._one_of(["", " "])
        comma = self._one_of([", ", ",", f",\n{' ' * column}"])
        match value:
            case None:
                return "null"
            case dict():
                parts = [f"{self._key(key)}: {self._flow(item, column)}" for key, item in value.items()]
                return f"{{{space}{comma.join(parts)}{self._last(parts)}{space}}}"
            case list():
                parts = [self._flow(item, column) for item in value]
                return f"[{space}{comma.join(parts)}{self._last(parts)}{space}]"
            case _:
                return self._scalar(value)

    def _last(self, parts: list[str]) -> str:
        return "," if parts and self._chance(10) else ""

    def _key(self, key: str) -> str:
        return f'"{key}"' if self._chance(5) else key

    def _scalar(self, value: Any) -> str:
        if not isinstance(value, str):
            return json.dumps(value)
        styles = [json.dumps(value, ensure_ascii=False)]
        if "\n" not in value:
            styles.append("'" + value.replace("'", "''") + "'")
        if _PLAIN.fullmatch(value) and value.lower() not in _RESERVED:
            styles += [value] * 3
        return str(self._one_of(styles))


_SCRIPT = "set -e\n# start it\nexec vllm serve /models/base \\\n  --port 8000 --enable-lora\n"
_START: list[dict[str, Any]] = [
    {"args": ["--model", "/models/base", "--enable-lora"]},
    {"command": ["vllm", "serve", "/models/base"], "args": ["--enable-lora", "--port=8000"]},
    {"command": ["vllm", "serve", "/models/base", "--enable-lora"]},
    {"command": ["/bin/sh", "-c"], "args": [_SCRIPT]},
    {"command": ["/bin/sh", "-c", _SCRIPT.removesuffix("\n")]},
    {"command": ["python3", "-m", "vllm.entrypoints.openai.api_server"], "args": ["--enable-lora"]},
]
_NONE: list[Any] = ["absent", [], None]


@st.composite
def _pod(draw: st.DrawFn, *, nulls: bool) -> dict[str, Any]:
    none = _NONE if nulls else _NONE[:2]
    server: dict[str, Any] = {"name": "vllm", "image": "vllm/vllm-openai:v0.11.0", **draw(st.sampled_from(_START))}
    lists: dict[str, Any] = {
        "env": draw(st.sampled_from([*none, [{"name": "A", "value": draw(st.sampled_from(_WORDS))}]])),
        "ports": draw(st.sampled_from([*none, [{"name": "http", "containerPort": 8000}]])),
        "volumeMounts": draw(st.sampled_from([*none, [{"name": "v", "mountPath": "/models"}]])),
    }
    server |= {key: value for key, value in lists.items() if value != "absent"}
    server = dict(draw(st.permutations(list(server.items()))))
    other = {"name": "other", "image": "nginx", "args": draw(st.lists(st.sampled_from(_WORDS), max_size=3))}
    spec: dict[str, Any] = {
        "containers": draw(st.sampled_from([[server], [other, server], [server, other]])),
        "volumes": draw(st.sampled_from([*none, [{"name": "v", "emptyDir": {}}]])),
        "initContainers": draw(st.sampled_from([*none, [{"name": "first", "image": "busybox", "command": ["true"]}]])),
        "hostname": draw(st.sampled_from(["absent", "h"])),
        "terminationGracePeriodSeconds": draw(st.sampled_from(["absent", 60])),
    }
    spec = {key: value for key, value in spec.items() if value != "absent"}
    return dict(draw(st.permutations(list(spec.items()))))


@st.composite
def _workload(draw: st.DrawFn, name: str, *, nulls: bool) -> dict[str, Any]:
    kind = draw(st.sampled_from(["Deployment", "StatefulSet", "Job", "Pod"]))
    annotations = draw(st.sampled_from([*(_NONE if nulls else _NONE[:1]), {}, {"a": "b"}]))
    metadata: dict[str, Any] = {"name": name, "labels": {"app": "x"}}
    metadata |= {} if annotations in ("absent", []) else {"annotations": annotations}
    metadata |= {"namespace": "models"} if draw(st.booleans()) else {}
    pod = draw(_pod(nulls=nulls))
    spec = pod if kind == "Pod" else {"template": {"metadata": {"labels": {"app": "x"}}, "spec": pod}}
    group = {"Pod": "v1", "Job": "batch/v1"}.get(kind, "apps/v1")
    value = {"apiVersion": group, "kind": kind, "metadata": metadata, "spec": spec}
    return dict(draw(st.permutations(list(value.items()))))


@st.composite
def streams(draw: st.DrawFn, *, nulls: bool = True, explicit_nulls: bool = False, foreign: bool = True) -> str:
    """Return a stream with one or two workloads that run vLLM, and other documents before, between and behind them.

    `nulls`: keys with nothing behind them; `explicit_nulls`: some of them say `null`. `foreign`: the other documents.
    """
    documents: list[str] = []
    for number in range(draw(st.integers(1, 2))):
        if foreign and draw(st.booleans()):
            documents.append(draw(st.sampled_from(_FOREIGN)))
        value = draw(_workload(f"w{number}", nulls=nulls))
        if draw(st.integers(0, 9)) == 0:
            value = {"apiVersion": "v1", "kind": "List", "items": [value]}
        if draw(st.integers(0, 9)) == 0 and "items" in value:
            documents.append(json.dumps(value, indent=draw(st.sampled_from([None, 2, "\t"]))) + "\n")
            continue
        lines = Writer(draw, explicit_nulls=explicit_nulls).document(value)
        documents.append("".join(f"{line}\n" for line in lines))
    if foreign and draw(st.booleans()):
        documents.append(draw(st.sampled_from(_FOREIGN)))
    text = draw(st.sampled_from(["", "---\n", "# first\n---\n"]))
    text += "---\n".join(documents)
    if draw(st.integers(0, 4)) == 0:
        text = text.removesuffix("\n")
    if draw(st.integers(0, 4)) == 0:
        text = text.replace("\n", "\r\n")
    return ("\ufeff" if draw(st.integers(0, 9)) == 0 else "") + text
