"""From manifests with sidecars to what they were before: the inverse of `injection`.

The trap guarded against is to take out too much. Only what the record in an object's annotation names is taken out,
the last added first, and of what is no longer there nothing is looked for elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from lora_sidecar.cli.inject import record
from lora_sidecar.cli.inject.manifests import edit
from lora_sidecar.cli.inject.manifests.documents import INJECTED, Object, Sheet, entries, mapping, sheets, walk
from lora_sidecar.cli.inject.manifests.page import CannotEditError, Page, newline_of
from lora_sidecar.cli.inject.manifests.tree import Path
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
    page = Page(document.text, sheet.root)
    for item in reversed(sheet.objects):
        teller = Teller(document, sheet.root, item)
        if item.kind in _BESIDE and item.injected is not None:
            teller.tell(Note((), "is taken out"))
            if not item.path:
                said += teller.said
                return ""
            page = _taken(page, item.path, teller)
        elif item.injected is not None:
            page = _workload(page, item, item.injected, teller)
        elif any(_has_sidecar(item, path) for path in item.pods):
            reason = "has a sidecar that inject has not added, or whose record is lost"
            teller.tell(Problem((), reason, f"take out what is named {SIDECAR} by hand"))
        said += teller.said
    return page.text


def _has_sidecar(item: Object, path: Path) -> bool:
    spec = mapping(walk(item.value, path))
    return any(
        one.get("name") == SIDECAR for one in [*entries(spec.get("initContainers")), *entries(spec.get("containers"))]
    )


def _workload(page: Page, item: Object, written: str, teller: Teller) -> Page:
    page = _taken(page, (*item.path, *record.ANNOTATIONS, INJECTED), teller)
    for inside, word in record.words(written):
        path = record.resolve(walk(page.root.value(), item.path), inside, word)
        if path is None:
            teller.tell(Note((), f"{word} is not there any more"))
            continue
        whole = (*item.path, *path)
        value = walk(page.root.value(), whole)
        if isinstance(path[-1], int):
            is_script = isinstance(value, str) and value != ENABLE_LORA
            page = _struck(page, whole, teller) if is_script else _taken(page, whole, teller)
        elif not value:  # it was made for what has been taken out of it by now
            page = _taken(page, whole, teller)
    teller.tell(Note((), "its sidecar is taken out"))
    return page


def _taken(page: Page, path: Path, teller: Teller) -> Page:
    try:
        return edit.remove(page, path)
    except CannotEditError as error:
        teller.tell(Problem((), error.reason, error.hint))
        return page


def _struck(page: Page, path: Path, teller: Teller) -> Page:
    try:
        return edit.strike_words(page, path, f" {ENABLE_LORA}")
    except CannotEditError as error:
        teller.tell(Problem((), error.reason, error.hint))
        return page
