"""What became of a text, and what is said of it, by line.

The trap guarded against is a message without a place: a person with a chart of two thousand lines must find what is
meant. Lines are those of the text as it came in.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from lora_sidecar.cli.inject.manifests.documents import Document, Object
from lora_sidecar.cli.inject.manifests.tree import Mapping, NotYamlError, Root
from lora_sidecar.cli.inject.manifests.value import Path
from lora_sidecar.cli.inject.remarks import Problem, Remark


class Said(Struct, frozen=True):
    """One sentence: the line (from 1) and the object that it speaks of; where it is a refusal, a hint (maybe empty)."""

    line: int
    subject: str
    text: str
    hint: str = ""
    refused: bool = False

    def __str__(self) -> str:
        subject = f"{self.subject}: " if self.subject else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{subject}{'refused: ' if self.refused else ''}{self.text}{hint}"


class Outcome(Struct, frozen=True):
    """A text as it is to be written, and what is said of it. With a refusal among that, the text is what came in."""

    text: str
    said: tuple[Said, ...]

    @property
    def refused(self) -> bool:
        """Whether anything was refused, so that nothing was changed."""
        return any(one.refused for one in self.said)


def not_yaml(document: Document, error: NotYamlError) -> Said:
    """Return what is said of a document that cannot be read."""
    return Said(document.line_of(error.offset), "", f"is not YAML: {error.reason}", refused=True)


def settled(streams: Sequence[str], outcomes: Sequence[Outcome]) -> tuple[Outcome, ...]:
    """Return outcomes as they are, or where one of them is a refusal with each text as it came in."""
    if not any(outcome.refused for outcome in outcomes):
        return tuple(outcomes)
    return tuple(Outcome(stream, outcome.said) for stream, outcome in zip(streams, outcomes, strict=True))


class Teller:
    """Collects what is said of one object of a document."""

    def __init__(self, document: Document, root: Root, item: Object) -> None:
        self._document = document
        self._root = root
        self._item = item
        self.said: list[Said] = []

    @property
    def refused(self) -> bool:
        """Whether something was refused."""
        return any(one.refused for one in self.said)

    def tell(self, remark: Remark) -> None:
        """Say something of a place inside the object, or as near to it as there is something."""
        line = self.line_of(remark.path)
        if isinstance(remark, Problem):
            self.said.append(Said(line, str(self._item), remark.reason, remark.hint, refused=True))
        else:
            self.said.append(Said(line, str(self._item), remark.text))

    def line_of(self, path: Path) -> int:
        """Return the line of a place inside the object."""
        whole = (*self._item.path, *path)
        for length in range(len(whole), -1, -1):
            node = self._root.find(whole[:length])
            if node is not None:
                parent = self._root.find(whole[: length - 1]) if length else None
                key = parent.key(whole[length - 1]) if isinstance(parent, Mapping) else None
                return self._document.line_of(key.start if key else node.start)
        return self._document.line
