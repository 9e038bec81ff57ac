"""Which missing adapters do not belong beside the base models that are served now.

The trap guarded against is another model on the same port: its adapters would be loaded onto weights that they were
not made for.
"""

from __future__ import annotations

from lora_sidecar.core.conditions import ConditionType
from lora_sidecar.core.paths import belongs_to
from lora_sidecar.core.text import printable
from lora_sidecar.reconcile.beat import BlockReason, ListingBeat


def decide(beat: ListingBeat) -> None:
    """Hold back what bears a base model's name, or was adopted on another base model."""
    ids = {base.id for base in beat.seen.bases}
    for name, adapter in beat.missing.items():
        if name in ids:
            beat.block(name, BlockReason.NAME_TAKEN, "its name is that of a served base model")
        elif not belongs_to(adapter, beat.seen.bases):
            why = f"it was adopted on another base model, {printable(adapter.base or '')}"
            beat.block(name, BlockReason.BASE_MODEL, why)
    hint = "give the adapter another name: a request for this one gets the base model"
    beat.raise_blocked(ConditionType.ADAPTER_NAME_TAKEN, BlockReason.NAME_TAKEN, hint)
    hint = "load them again under this base model, or serve the former one"
    beat.raise_blocked(ConditionType.BASE_MODEL_CHANGED, BlockReason.BASE_MODEL, hint)
