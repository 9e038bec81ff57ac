"""From manifests to manifests with sidecars: the whole of what `inject` does to a text. `removal` goes the way back.

The trap guarded against is half a job: a Deployment with a sidecar whose ConfigMap could not be written, a second run
that adds a second one. Every workload of a text is decided upon before any text is returned; one refusal, and none is
changed.
"""

from __future__ import annotations

from collections.abc import Mapping as Map
from collections.abc import Sequence

from lora_sidecar.cli.inject.manifests import edit
from lora_sidecar.cli.inject.manifests.documents import Document, Object, Sheet, is_named, sheets
from lora_sidecar.cli.inject.manifests.page import CannotEditError, Page
from lora_sidecar.cli.inject.manifests.value import Path, Value, mapping, text
from lora_sidecar.cli.inject.outcome import Outcome, Said, Teller, not_yaml, settled
from lora_sidecar.cli.inject.recording import Recording
from lora_sidecar.cli.inject.remarks import Problem
from lora_sidecar.cli.inject.workload import Addition, Options, plan


def inject(streams: Sequence[str], options: Options) -> tuple[Outcome, ...]:
    """Return streams of manifests with a sidecar in each pod that runs a server, or why that cannot be.

    They are applied together, so names are looked for in all of them, and one refusal is one for all.
    """
    read = [sheets(stream) for stream in streams]
    names = _Names([sheet for one in read for sheet in one])
    outcomes = []
    for one in read:
        said: list[Said] = []
        pieces = [_sheet(sheet, options, names, said) for sheet in one]
        outcomes.append(Outcome("".join(pieces), tuple(said)))
    if not any(outcome.said for outcome in outcomes):
        what = f"container {options.container}" if options.container else "container that runs vLLM or SGLang"
        nothing = Said(1, "", f"there is no {what}", refused=options.container is not None)
        outcomes[0] = Outcome(outcomes[0].text, (nothing,))
    return settled(streams, outcomes)


class _Names:
    """What the stream has already: its objects, so that none is given the name of another or changed in vain."""

    def __init__(self, read: Sequence[Sheet]) -> None:
        self._read = read
        self._objects = {(one.kind, one.namespace, one.name) for sheet in read for one in sheet.objects}
        self._taken: dict[tuple[str, str | None, str], str] = {}

    def owner(self, item: Object) -> str | None:
        """Return the object of this stream that makes and remakes another, or None."""
        if item.controller is None:
            return None
        kind, name = item.controller
        return f"{kind} {name}" if (kind, item.namespace, name) in self._objects else None

    def take(self, made: Map[str, Value], owner: str) -> str | None:
        """Take a name for an object that was made; return who has it, if somebody else does."""
        metadata = mapping(made["metadata"])
        kind, name, namespace = text(made["kind"]), text(metadata["name"]), text(metadata.get("namespace")) or None
        holder = self._taken.setdefault((kind, namespace, name), owner)
        if holder != owner:
            return f"what is added for {holder}"
        # Documents without containers are not read: a name beside the kind is enough to be careful.
        if any(kind in sheet.document.text and is_named(sheet.document, name) for sheet in self._read):
            return f"the {kind} that is here already"
        return None


def _sheet(sheet: Sheet, options: Options, names: _Names, said: list[Said]) -> str:
    """Return what a document becomes; what is to be said of it goes to `said`."""
    document = sheet.document
    if sheet.error is not None:
        said.append(not_yaml(document, sheet.error))
    if sheet.root is None:
        return document.text
    recording = Recording(Page(document.text, sheet.root))
    beside = _Beside()
    for item in sheet.objects:
        if item.is_workload:
            teller = Teller(document, sheet.root, item)
            beside.put(item, _object(recording, item, options, names, teller))
            said += teller.said
    try:
        return beside.finish(recording, document)
    except CannotEditError as error:
        said.append(Said(document.line, "", error.reason, error.hint, refused=True))
        return document.text


class _Beside:
    """The objects that are to stand beside those of a document: as items of its list, or as documents of their own."""

    def __init__(self) -> None:
        self._listed: dict[Path, list[Value]] = {}
        self._alone: list[dict[str, Value]] = []

    def put(self, item: Object, made: Sequence[dict[str, Value]]) -> None:
        """Put what was made for an object where it belongs."""
        if made and item.path:
            self._listed.setdefault(item.path[:-1], []).extend(made)
        else:
            self._alone += made

    def finish(self, recording: Recording, document: Document) -> str:
        """Return the document with all that was drafted and put. Raises `CannotEditError`."""
        for path, values in self._listed.items():
            recording.draft.append(path, values)
        if not self._listed and not self._alone:
            return document.text
        return edit.with_documents(recording.draft.finish(), self._alone)


def _object(
    recording: Recording, item: Object, options: Options, names: _Names, teller: Teller
) -> Sequence[dict[str, Value]]:
    """Draft what is to be added to an object; return what was made to stand beside it."""
    additions = plan(item, options, names.owner(item), teller)
    made = [one for addition in additions for one in addition.objects]
    for one in made:
        holder = names.take(one, str(item))
        if holder is not None:
            reason = f"what is added for it would have the same name as {holder}"
            teller.tell(Problem(("metadata",), reason, "rename it, or take the other one out"))
    if not additions or teller.refused:
        return []
    try:
        _add(recording, item, additions)
    except CannotEditError as error:
        teller.tell(Problem(recording.at, error.reason, error.hint))
    return made


def _add(recording: Recording, item: Object, additions: Sequence[Addition]) -> None:
    """Add to an object what was planned. Raises `CannotEditError`."""
    recording.begin(item.path)
    for addition in additions:
        recording.turn_to(addition.pod)
        for place in addition.lora:
            recording.enable_lora(place)
        for place, values in addition.items:
            recording.append(place, values)
    recording.keep()
