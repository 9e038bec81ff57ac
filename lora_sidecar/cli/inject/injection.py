"""From manifests to manifests with sidecars: the whole of what `inject` does to a text. `removal` goes the way back.

The trap guarded against is half a job: a Deployment with a sidecar whose ConfigMap could not be written, a second run
that adds a second one. Every workload of a text is decided upon before any text is returned; one refusal, and none is
changed.
"""

from __future__ import annotations

from collections.abc import Mapping as Map
from collections.abc import Sequence

from lora_sidecar.cli.inject.manifests import edit
from lora_sidecar.cli.inject.manifests.documents import Object, Sheet, entries, is_named, mapping, sheets, text
from lora_sidecar.cli.inject.manifests.page import CannotEditError, Page
from lora_sidecar.cli.inject.manifests.tree import Value
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
        for reference in entries(mapping(item.value.get("metadata")).get("ownerReferences")):
            kind, name = text(reference.get("kind")), text(reference.get("name"))
            if (kind, item.namespace, name) in self._objects:
                return f"{kind} {name}"
        return None

    def take(self, made: Map[str, Value], owner: str) -> str | None:
        """Take a name for an object that was made; return who has it, if somebody else does."""
        metadata = mapping(made["metadata"])
        kind, name, namespace = text(made["kind"]), text(metadata["name"]), text(metadata.get("namespace")) or None
        holder = self._taken.setdefault((kind, namespace, name), owner)
        if holder != owner:
            return holder
        # Documents without containers are not read: a name beside the kind is enough to be careful.
        if any(kind in sheet.document.text and is_named(sheet.document, name) for sheet in self._read):
            return f"a {kind} that is here already"
        return None


def _sheet(sheet: Sheet, options: Options, names: _Names, said: list[Said]) -> str:
    """Return what a document becomes; what is to be said of it goes to `said`."""
    document = sheet.document
    if sheet.error is not None:
        said.append(not_yaml(document, sheet.error))
    if sheet.root is None:
        return document.text
    recording = Recording(Page(document.text, sheet.root))
    alone: list[dict[str, Value]] = []
    for item in sheet.objects:
        if not item.is_workload:
            continue
        teller = Teller(document, sheet.root, item)
        additions = plan(item, options, names.owner(item), teller)
        made = [one for addition in additions for one in addition.objects]
        for one in made:
            holder = names.take(one, str(item))
            if holder is not None:
                reason = f"what is added for it would have the name of what is added for {holder}"
                teller.tell(Problem(("metadata",), reason, "rename it, or take the other one out"))
        if additions and not teller.refused:
            try:
                _add(recording, item, additions, made)
                alone += made if not item.path else []
            except CannotEditError as error:
                teller.tell(Problem(recording.at, error.reason, error.hint))
        said += teller.said
    try:
        return edit.with_documents(recording.page, alone)
    except CannotEditError as error:
        said.append(Said(document.line, "", error.reason, error.hint, refused=True))
        return document.text


def _add(recording: Recording, item: Object, additions: Sequence[Addition], made: Sequence[dict[str, Value]]) -> None:
    """Add to an object what was planned, and to its list the objects that were made. Raises `CannotEditError`."""
    recording.begin(item.path)
    for addition in additions:
        recording.turn_to(addition.pod)
        for place in addition.lora:
            recording.enable_lora(place)
        for place, value in addition.items:
            recording.append(place, value)
    recording.keep()
    if item.path:
        for one in made:
            recording.page = edit.append(recording.page, item.path[:-1], one)
