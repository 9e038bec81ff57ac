"""Splits a stream of manifests into documents, and finds the workloads in them.

The trap guarded against is to read what is not ours to read: a document without containers is neither parsed nor
judged, so whatever a chart prints beside its workloads passes through. A document begins at a line of `---`, which
YAML lets stand nowhere else, not even in a block of text.
"""

from __future__ import annotations

import re
from typing import Final

from msgspec import Struct

from lora_sidecar.cli.inject.manifests.tree import NotYamlError, Root, read
from lora_sidecar.cli.inject.manifests.value import Path, Value, entries, mapping, text, walk

INJECTED: Final = "lora-sidecar/injected"
"""The annotation in which is recorded what was added, so that it can be taken out again."""

_MARKER: Final = re.compile(r"^---(?=[ \t\r\n]|\Z)", re.MULTILINE)
_TEMPLATE: Final[tuple[Path, ...]] = (("spec", "template", "spec"),)
_KSERVE: Final[tuple[Path, ...]] = (("spec", "template"), ("spec", "prefill", "template"))
_PODS: Final[dict[tuple[str, str], tuple[Path, ...]]] = {
    ("apps", "Deployment"): _TEMPLATE,
    ("apps", "StatefulSet"): _TEMPLATE,
    ("apps", "DaemonSet"): _TEMPLATE,
    ("apps", "ReplicaSet"): _TEMPLATE,
    ("batch", "Job"): _TEMPLATE,
    ("", "Pod"): (("spec",),),
    # Its workers serve no HTTP: the leader alone is looked at.
    ("leaderworkerset.x-k8s.io", "LeaderWorkerSet"): (("spec", "leaderWorkerTemplate", "leaderTemplate", "spec"),),
    ("serving.kserve.io", "LLMInferenceService"): _KSERVE,
    ("serving.kserve.io", "LLMInferenceServiceConfig"): _KSERVE,
}

_KIND: Final = re.compile(
    rf"""kind["']?[ \t]*:\s*(?:&\S+\s+)?["']?(?:{"|".join(kind for _, kind in _PODS)}|\w*List)\b"""
)


class Document(Struct, frozen=True):
    """One document of a stream, its separator line included; `line` is that of its first character, from 1."""

    text: str
    line: int

    def line_of(self, offset: int) -> int:
        """Return the line of the stream in which an offset of this document lies."""
        return self.line + self.text.count("\n", 0, offset)


class Sheet(Struct, frozen=True):
    """A document as far as it concerns us: read, with its objects (a list's are its items), or why it is not."""

    document: Document
    root: Root | None
    objects: tuple[Object, ...]
    error: NotYamlError | None = None


class Object(Struct, frozen=True):
    """One Kubernetes object of a document; `path` leads to it, and is empty where it is no item of a list."""

    path: Path
    group: str
    kind: str
    name: str
    namespace: str | None
    value: dict[str, Value]

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"

    @property
    def injected(self) -> str | None:
        """What was recorded of it when it was injected, or None."""
        annotations = mapping(mapping(self.value.get("metadata")).get("annotations"))
        record = annotations.get(INJECTED)
        return record if isinstance(record, str) else None

    @property
    def controller(self) -> tuple[str, str] | None:
        """The kind and the name of the object that makes and remakes this one, or None."""
        for reference in entries(mapping(self.value.get("metadata")).get("ownerReferences")):
            if text(reference.get("controller")) == "true":
                return text(reference.get("kind")), text(reference.get("name"))
        return None

    @property
    def pods(self) -> tuple[Path, ...]:
        """The paths of the pod specs in it that may hold a server; empty for what is no workload."""
        return tuple(
            path for path in _PODS.get((self.group, self.kind), ()) if isinstance(walk(self.value, path), dict)
        )

    @property
    def is_workload(self) -> bool:
        """Whether objects of its kind have pods, be their templates given or not."""
        return (self.group, self.kind) in _PODS


def split(text: str) -> tuple[Document, ...]:
    """Return the documents of a stream; joined, their texts are the stream."""
    starts = [0, *(found.start() for found in _MARKER.finditer(text) if found.start())]
    documents, line = [], 1
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        documents.append(Document(text[start:end], line))
        line += text.count("\n", start, end)
    return tuple(documents)


def sheets(stream: str) -> tuple[Sheet, ...]:
    """Return the documents of a stream, each read if it may hold what concerns us."""
    return tuple(_sheet(document) for document in split(stream))


def _sheet(document: Document) -> Sheet:
    if not ("containers" in document.text and _KIND.search(document.text)) and INJECTED not in document.text:
        return Sheet(document, None, ())
    try:
        root = read(document.text)
        return Sheet(document, root, tuple(_objects(root.value(), ())) if root else ())
    except NotYamlError as error:
        return Sheet(document, None, (), error)


def is_named(document: Document, name: str) -> bool:
    """Whether a document has a line that gives this name, to whatever it is."""
    return (
        re.search(rf"""\bname["']?[ \t]*:[ \t]*["']?{re.escape(name)}["']?[ \t]*[,}}\r\n#]""", f"{document.text}\n")
        is not None
    )


def _objects(value: Value, path: Path) -> list[Object]:
    if not isinstance(value, dict):
        return []
    kind, version = text(value.get("kind")), text(value.get("apiVersion"))
    items = value.get("items")
    if kind.endswith("List") and isinstance(items, list):
        return [one for index, item in enumerate(items) for one in _objects(item, (*path, "items", index))]
    metadata = mapping(value.get("metadata"))
    group = version.rpartition("/")[0]
    name = text(metadata.get("name")) or text(metadata.get("generateName")).rstrip("-")
    return [Object(path, group, kind, name, text(metadata.get("namespace")) or None, value)]
