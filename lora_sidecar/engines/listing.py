"""`/v1/models`, which both engines answer in one shape. Pure: bytes in, values out.

The trap guarded against is a body that looks like a listing and says nothing: an error page with 200, half an answer, a
name with two paths. What is not certainly a listing is no empty one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec
from msgspec import Struct

from lora_sidecar.core.observation import BaseModel, Listed
from lora_sidecar.engines.text import UNREADABLE, sentence


class Listing(Struct, frozen=True):
    """The cards of one good `/v1/models`: base models, and adapters in the order in which they are listed.

    `owners` are those of the base models, as the server names them. `rootless` is whether a card has no `root`.
    `resolves_paths` is whether folders are listed by their real paths.
    """

    bases: tuple[BaseModel, ...]
    adapters: tuple[Listed, ...]
    owners: frozenset[str] = frozenset()
    rootless: bool = False
    resolves_paths: bool = False

    @property
    def engine(self) -> Literal["vllm", "sglang"] | None:
        """What all its base models name as their owner, None where that is none that is known."""
        (owner, *others) = self.owners or ("",)
        return None if others else _ENGINES.get(owner)


class BadListing(Struct, frozen=True):
    """A body that is not a listing, and why."""

    why: str


class _Card(Struct, gc=False):
    id: str
    root: str | None = None
    parent: str | None = None
    owned_by: str = ""


class _Body(Struct):
    object: str
    data: list[_Card]


_ENGINES: Mapping[str, Literal["vllm", "sglang"]] = {"vllm": "vllm", "vllm-frontend-rs": "vllm", "sglang": "sglang"}
_LISTING = msgspec.json.Decoder(_Body)


def decode_listing(body: bytes) -> Listing | BadListing:
    """Read `/v1/models`. A card with a `parent` is an adapter; `root` is then the path it was loaded from.

    Equal cards count once (vLLM to 0.9.2 can register one adapter twice), and an adapter named like a base model is
    left out (vLLM to 0.30 accepts one, and serves the base model for it); one name with two paths cannot be trusted.
    """
    try:
        decoded = _LISTING.decode(body)
    except UNREADABLE as error:
        return BadListing(f"not a list of models: {sentence(str(error))}")
    if decoded.object != "list":
        return BadListing(f"not a list of models: its object is {sentence(decoded.object)!r}")
    models = [card for card in decoded.data if card.parent is None]
    served = {card.id for card in models}
    listed = [Listed(c.id, c.root or "", c.parent) for c in decoded.data if c.parent is not None and c.id not in served]
    adapters = tuple(dict.fromkeys(listed))
    if len({card.name for card in adapters}) != len(adapters) or len(served) != len(models):
        return BadListing("the same model is listed twice")
    return Listing(
        bases=tuple(BaseModel(card.id, card.root or card.id) for card in models),
        adapters=adapters,
        owners=frozenset(card.owned_by for card in models),
        rootless=any(card.root is None for card in decoded.data),
    )
