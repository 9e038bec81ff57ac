"""How desired changes: by the config, by what the listing shows, and by nothing else.

Two traps are guarded against. Desired that shrinks on a bad day (an empty listing, a broken config) is how adapters are
lost; so each way out of it is one named function here. And a name that clients can put into the listing must not
become state without bound; so adoption goes by rule, and a refusal has a reason.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping

from msgspec.structs import replace

from lora_sidecar.config.inventory import AdapterConfig
from lora_sidecar.config.settings import AdoptConfig
from lora_sidecar.config.values import matches
from lora_sidecar.core.events import Event, EventName, info, warning
from lora_sidecar.core.model import Adapter, Desired, Origin, Withdrawn
from lora_sidecar.core.observation import BaseModel, Listed

NAME_LIMIT = 256
PATH_LIMIT = 4096

_NO_PATH = frozenset({"", "__tensor__"})
"""Roots of adapters that were not loaded from anywhere they could be loaded from again (SGLang: from tensors)."""


def declare(desired: Desired, declared: Iterable[AdapterConfig]) -> tuple[Desired, tuple[Event, ...]]:
    """Make the declared adapters exactly those of the config.

    One that was removed from the config is released: it stays loaded, is restored no more, and is not adopted again
    while it stays listed. One that was withdrawn stays so for as long as its entry is the same. The same object is
    returned if nothing changed.
    """
    wanted = {config.name: _declared(config, _known(desired, config.name)) for config in declared}
    withdrawn = {n: one for n, one in desired.withdrawn.items() if one.declared == wanted.get(n)}
    # Removed from the config before the server was told to unload it: it is still to be told.
    withdrawn |= {n: Withdrawn() for n, one in desired.withdrawn.items() if one.pending and n not in wanted}
    wanted = {n: a for n, a in wanted.items() if n not in withdrawn}
    kept = {n: a for n, a in desired.adapters.items() if n not in wanted and a.origin is not Origin.DECLARED}
    gone = {n: a for n, a in desired.adapters.items() if n not in wanted and a.origin is Origin.DECLARED}
    adapters = kept | wanted
    if adapters == desired.adapters and withdrawn == desired.withdrawn:
        return desired, ()
    released = {n: p for n, p in desired.released.items() if n not in wanted} | {
        n: a.listed_as or a.path for n, a in gone.items()
    }
    facts = [
        info(EventName.ADAPTER_DECLARED, adapter=a.name, path=a.path, required=a.required, priority=a.priority)
        for n, a in wanted.items()
        if desired.adapters.get(n) != a
    ]
    facts += [
        info(EventName.ADAPTER_ORPHANED, adapter=n, path=a.path, reason="removed from the config; it is not unloaded")
        for n, a in gone.items()
    ]
    # A mended config deserves a fresh start.
    suspects = {n: s for n, s in desired.suspects.items() if adapters.get(n) == desired.adapters.get(n)}
    changed = replace(desired, adapters=adapters, released=released, withdrawn=withdrawn, suspects=suspects)
    return changed, tuple(facts)


def _known(desired: Desired, name: str) -> Adapter | None:
    withdrawn = desired.withdrawn.get(name)
    return desired.adapters.get(name) if withdrawn is None else withdrawn.declared


def _declared(config: AdapterConfig, known: Adapter | None) -> Adapter:
    return Adapter(
        name=config.name,
        path=config.path,
        origin=Origin.DECLARED,
        required=config.required,
        priority=config.priority,
        is_3d_lora_weight=config.is_3d_lora_weight,
        listed_as=known.listed_as if known is not None and known.path == config.path else None,
    )


def adopt(
    desired: Desired, cards: Iterable[Listed], bases: tuple[BaseModel, ...], rule: AdoptConfig
) -> tuple[Desired, Mapping[str, str], tuple[Event, ...]]:
    """Add what is listed and not desired, by rule; follow a learned adapter to the path it is listed with, by the same.

    Returns the new desired (the same object if nothing changed), the names that were not adopted with the reason, and
    the facts.
    """
    changed: dict[str, Adapter] = {}
    released = desired.released
    refused: dict[str, str] = {}
    facts: list[Event] = []
    learned = sum(a.origin is Origin.LEARNED for a in desired.adapters.values())
    for card in cards:
        known = desired.adapters.get(card.name)
        if known is not None:
            if known.origin is Origin.DECLARED:
                continue
            refusal = "" if is_listed_path(known, card.path) else _refusal(card, rule)
            if refusal:
                refused[card.name] = refusal
                continue
            followed, said = _follow(known, card, bases)
            facts += said
            if followed is not known:
                changed[card.name] = followed
            continue
        if card.name in desired.withdrawn or (card.name in released and same_path(released[card.name], card.path)):
            continue
        refusal = _refusal(card, rule)
        if not refusal and learned >= rule.max:
            refusal = f"policy.adopt.max of {rule.max} is reached"
        if refusal:
            refused[card.name] = refusal
            continue
        learned += 1
        changed[card.name] = Adapter(card.name, card.path, Origin.LEARNED, base=_base_of(card, bases))
        facts.append(info(EventName.ADAPTER_ADOPTED, adapter=card.name, path=card.path))
    if not changed:
        return desired, refused, ()
    left = {n: p for n, p in released.items() if n not in changed}
    return replace(desired, adapters={**desired.adapters, **changed}, released=left), refused, tuple(facts)


def _follow(known: Adapter, card: Listed, bases: tuple[BaseModel, ...]) -> tuple[Adapter, tuple[Event, ...]]:
    """The adapter as it is listed now: somebody may have loaded it from elsewhere, or under another base model."""
    base = known.base if same_base(known, bases) else _base_of(card, bases)
    if is_listed_path(known, card.path):
        return (known if base == known.base else replace(known, base=base)), ()
    fact = info(EventName.ADAPTER_REPLACED, adapter=card.name, path=card.path, previous=known.path)
    return replace(known, path=card.path, base=base, listed_as=None), (fact,)


def _refusal(card: Listed, rule: AdoptConfig) -> str:
    if not rule.enabled:
        return "policy.adopt.enabled is false"
    if card.path in _NO_PATH:
        return "the server names no path that it could be loaded from again"
    # Before the pattern is tried on it: clients may choose the name, and matching takes as long as it is long.
    if not 0 < len(card.name) <= NAME_LIMIT or not card.name.isprintable():
        return f"its name is empty, has control characters or more than {NAME_LIMIT} characters"
    if len(card.path) > PATH_LIMIT or not card.path.isprintable():
        return f"its path has control characters or more than {PATH_LIMIT} characters"
    if rule.names is not None and not matches(rule.names, card.name):
        return "its name does not match policy.adopt.names"
    if rule.roots and not any(_under(card.path, root) for root in rule.roots):
        return "its path is under none of policy.adopt.roots"
    return ""


def forget(desired: Desired, names: Iterable[str], evidence: str, *, weak: bool) -> tuple[Desired, tuple[Event, ...]]:
    """Drop the adapters that somebody unloaded on purpose; `weak` says that the evidence for it is a guess."""
    gone = frozenset(names)
    if not gone:
        return desired, ()
    left = {n: a for n, a in desired.adapters.items() if n not in gone}
    say = warning if weak else info
    facts = tuple(
        say(
            EventName.ADAPTER_FORGOTTEN,
            adapter=name,
            path=desired.adapters[name].path,
            reason="unloaded by somebody else; it will not be restored",
            evidence=evidence,
        )
        for name in sorted(gone)
    )
    return replace(desired, adapters=left), facts


def same_path(one: str, other: str) -> bool:
    """Whether two paths name the same folder as far as their text tells; vLLM keeps a trailing slash as it was sent."""
    return one == other or one.rstrip("/") == other.rstrip("/")


def is_listed_path(adapter: Adapter, path: str) -> bool:
    """Whether an adapter that is listed with `path` is the one that is desired."""
    return same_path(adapter.path, path) or (adapter.listed_as is not None and same_path(adapter.listed_as, path))


def same_base(adapter: Adapter, bases: tuple[BaseModel, ...]) -> bool:
    """Whether an adapter belongs to one of the served base models, as far as it is known to which it belongs."""
    return adapter.base is None or any(adapter.base in (base.root, base.id) for base in bases)


def _base_of(card: Listed, bases: tuple[BaseModel, ...]) -> str | None:
    for base in bases:
        if base.id == card.parent:
            return base.root
    return bases[0].root if bases else None


def _under(path: str, root: str) -> bool:
    clean = posixpath.normpath(path)
    return clean == posixpath.normpath(root) or clean.startswith(posixpath.normpath(root).rstrip("/") + "/")
