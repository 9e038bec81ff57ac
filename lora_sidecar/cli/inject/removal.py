"""From manifests with sidecars to what they were before: the inverse of `injection`.

The trap guarded against is to take out too much. Only what the record in an object's annotation names is taken out,
the last added first, and of what is no longer there nothing is looked for elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from lora_sidecar.cli.inject import record
from lora_sidecar.cli.inject.manifests.documents import INJECTED, Object, Sheet, sheets
from lora_sidecar.cli.inject.manifests.edit import Draft
from lora_sidecar.cli.inject.manifests.page import CannotEditError, Page, newline_of
from lora_sidecar.cli.inject.manifests.value import Path, Value, entries, mapping, walk
from lora_sidecar.cli.inject.outcome import Outcome, Said, Teller, not_yaml, settled
from lora_sidecar.cli.inject.pod import SIDECAR
from lora_sidecar.cli.inject.remarks import Note, Problem
from lora_sidecar.cli.inject.servers.engine import ENABLE_LORA

_BESIDE: Final = frozenset({"ConfigMap", "Secret"})


def remove(streams: Sequence[str]) -> tuple[Outcome, ...]:
    """Return streams of manifests without the sidecars that `inject` has added, or why that cannot be."""
    outcomes = []
    for stream in streams:
        said: list[Said] = []
        pieces = [_sheet(sheet, said) for sheet in sheets(stream)]
        whole = "".join(pieces)
        if not pieces[-1] and not stream.endswith("\n"):
            # What stood at the end of the stream had begun a line of its own.
            whole = whole.removesuffix(newline_of(stream))
        outcomes.append(Outcome(whole, tuple(said)))
    if not any(outcome.said for outcome in outcomes):
        outcomes[0] = Outcome(outcomes[0].text, (Said(1, "", "there is no sidecar that inject has added"),))
    return settled(streams, outcomes)


def _sheet(sheet: Sheet, said: list[Said]) -> str:
    """Return what a document becomes; what is to be said of it goes to `said`."""
    document = sheet.document
    if sheet.error is not None:
        said.append(not_yaml(document, sheet.error))
    if sheet.root is None:
        return document.text
    if len(sheet.objects) == 1 and not sheet.objects[0].path and _is_beside(sheet.objects[0]):
        said.append(Said(document.line, str(sheet.objects[0]), "is taken out"))
        return ""
    draft = Draft(Page(document.text, sheet.root))
    listed: dict[Path, list[int]] = {}
    touched = False
    for item in sheet.objects:
        teller = Teller(document, sheet.root, item)
        touched |= _object(draft, item, listed, teller)
        said += teller.said
    try:
        for path, indices in listed.items():
            draft.remove_items(path, indices)
        return draft.finish().text if touched else document.text
    except CannotEditError as error:
        said.append(Said(document.line, "", error.reason, error.hint, refused=True))
        return document.text


def _is_beside(item: Object) -> bool:
    """Whether an object was added for a workload."""
    return item.kind in _BESIDE and item.injected is not None


def _object(draft: Draft, item: Object, listed: dict[Path, list[int]], teller: Teller) -> bool:
    """Draft what is to be taken out of an object, or `listed` as an item of its list; return whether something is."""
    if _is_beside(item):
        *path, index = item.path
        if isinstance(index, int):
            listed.setdefault(tuple(path), []).append(index)
            teller.tell(Note((), "is taken out"))
        return True
    if item.injected is not None:
        try:
            _workload(draft, item, item.injected, teller)
        except CannotEditError as error:
            teller.tell(Problem((), error.reason, error.hint))
        return True
    if any(_has_sidecar(item, path) for path in item.pods):
        reason = "has a sidecar that inject has not added, or whose record is lost"
        teller.tell(Problem((), reason, f"take out what is named {SIDECAR} by hand"))
    return False


def _has_sidecar(item: Object, path: Path) -> bool:
    spec = mapping(walk(item.value, path))
    return any(
        one.get("name") == SIDECAR for one in [*entries(spec.get("initContainers")), *entries(spec.get("containers"))]
    )


def _workload(draft: Draft, item: Object, written: str, teller: Teller) -> None:
    """Take out of an object what its record names. Raises `CannotEditError`."""
    made: list[Path] = []
    items: dict[Path, list[int]] = {}
    for inside, word in record.words(written):
        path = record.resolve(item.value, inside, word)
        if path is None:
            teller.tell(Note((), f"{word} is not there any more"))
        elif not isinstance(path[-1], int):
            made.append(path)
        elif _is_script(walk(item.value, path)):
            draft.strike_words((*item.path, *path), f" {ENABLE_LORA}")
        else:
            items.setdefault(path[:-1], []).append(path[-1])
    annotations = mapping(walk(item.value, record.ANNOTATIONS))
    if record.ANNOTATIONS in made and len(annotations) == 1:
        draft.remove_key((*item.path, *record.ANNOTATIONS))
    else:
        draft.remove_key((*item.path, *record.ANNOTATIONS, INJECTED))
    for path, indices in items.items():
        holder = walk(item.value, path)
        if path in made and isinstance(holder, list) and len(holder) == len(indices):
            draft.remove_key((*item.path, *path))
        else:
            draft.remove_items((*item.path, *path), indices)
    teller.tell(Note((), "its sidecar is taken out"))


def _is_script(value: Value) -> bool:
    return isinstance(value, str) and value != ENABLE_LORA
