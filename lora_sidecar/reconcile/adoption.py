"""What the listing shows and nobody wanted yet: adopted by rule, or refused with a reason.

The trap guarded against is state without bound: clients can put a name into the listing where a resolver is on. So
adoption goes by rule, and an adopted adapter that somebody loaded from elsewhere is followed by the same rule.
"""

from __future__ import annotations

import posixpath

from msgspec.structs import replace

from lora_sidecar.config.settings import AdoptConfig
from lora_sidecar.config.values import matches
from lora_sidecar.core.conditions import ConditionType
from lora_sidecar.core.events import EventName
from lora_sidecar.core.model import Adapter, Origin
from lora_sidecar.core.observation import Listed
from lora_sidecar.core.paths import belongs_to, is_listed_path, same_path
from lora_sidecar.core.text import reasons
from lora_sidecar.reconcile.beat import ListingBeat

NAME_LIMIT = 256
PATH_LIMIT = 4096

_NO_PATH = frozenset({"", "__tensor__"})
"""Roots of adapters that were not loaded from anywhere they could be loaded from again (SGLang: from tensors)."""


def learn(beat: ListingBeat) -> None:
    """Add what is listed and not desired, by rule; follow an adopted adapter to the path it is listed with."""
    desired, rule = beat.desired, beat.policy.rules.adopt
    changed: dict[str, Adapter] = {}
    refused: dict[str, str] = {}
    adopted = sum(a.origin is Origin.ADOPTED for a in desired.adapters.values())
    for card in beat.seen.adapters:
        known = desired.adapters.get(card.name)
        if known is not None:
            _follow(known, card, changed, refused, beat)
            continue
        orphan = desired.orphaned.get(card.name)
        if card.name in desired.withdrawn or (orphan is not None and same_path(orphan, card.path)):
            continue
        refusal = _refusal(card, rule)
        if not refusal and adopted >= rule.max:
            refusal = f"policy.adopt.max of {rule.max} is reached"
        if refusal:
            refused[card.name] = refusal
            continue
        adopted += 1
        changed[card.name] = Adapter(card.name, card.path, Origin.ADOPTED, base=_base_of(card, beat))
        beat.say(EventName.ADAPTER_ADOPTED, adapter=card.name, path=card.path)
    if changed:
        orphaned = {n: p for n, p in desired.orphaned.items() if n not in changed}
        beat.desired = replace(desired, adapters={**desired.adapters, **changed}, orphaned=orphaned)
    beat.refused = refused
    if refused:
        hint = "they will not come back after a restart; widen policy.adopt or declare them"
        beat.raise_condition(ConditionType.ADOPTION_REFUSED, reasons(refused), hint)


def _follow(
    known: Adapter, card: Listed, changed: dict[str, Adapter], refused: dict[str, str], beat: ListingBeat
) -> None:
    """Somebody may have loaded a desired adapter from elsewhere, or under another base model."""
    if known.origin is Origin.DECLARED:
        return
    base = known.base if belongs_to(known, beat.seen.bases) else _base_of(card, beat)
    if is_listed_path(known, card.path):
        if base != known.base:
            changed[card.name] = replace(known, base=base)
        return
    refusal = _refusal(card, beat.policy.rules.adopt)
    if refusal:
        refused[card.name] = refusal
        return
    beat.say(EventName.ADAPTER_REPLACED, adapter=card.name, path=card.path, previous=known.path)
    changed[card.name] = replace(known, path=card.path, base=base, listed_as=None)


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


def _base_of(card: Listed, beat: ListingBeat) -> str | None:
    bases = beat.seen.bases
    for base in bases:
        if base.id == card.parent:
            return base.root
    return bases[0].root if bases else None


def _under(path: str, root: str) -> bool:
    clean = posixpath.normpath(path)
    return clean == posixpath.normpath(root) or clean.startswith(posixpath.normpath(root).rstrip("/") + "/")
