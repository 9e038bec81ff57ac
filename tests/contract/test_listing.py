from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract.conftest import Folders
from tests.contract.transcript import HeardApi, Transcript, shape

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]


async def test_base_card(api: HeardApi, transcript: Transcript, model: Path) -> None:
    """The base model's card comes first, has no parent, and its root is the model as it was given."""
    listing = (await api.get("/v1/models")).json()
    assert listing["object"] == "list"
    card = listing["data"][0]
    assert (card["id"], card["root"], card["parent"], card["max_model_len"]) == ("base", str(model), None, 512)
    assert (card["object"], card["owned_by"]) == ("model", "vllm")
    transcript.note("the base model's card", card)


async def test_adapter_card_has_the_shape_of_the_base_card(
    api: HeardApi, transcript: Transcript, folders: Folders, name: str
) -> None:
    """An adapter's card has the base card's keys and types, except for its parent and its missing length."""
    assert (await api.load(name, folders.whole)).status == 200
    base, *_, adapter = await api.cards()
    assert (adapter["id"], adapter["root"], adapter["parent"]) == (name, str(folders.whole), "base")
    assert adapter["max_model_len"] is None
    assert shape(base | {"parent": "base", "max_model_len": None}) == shape(adapter)
    assert list(base) == list(adapter)
    assert isinstance(adapter["created"], int)
    transcript.note("the adapter's card", adapter)


async def test_no_two_listings_are_equal(api: HeardApi) -> None:
    """Permission ids are new in every listing, so bodies cannot be compared."""
    first, second = await api.cards(), await api.cards()
    assert [card["permission"][0]["id"] for card in first] != [card["permission"][0]["id"] for card in second]


async def test_root_is_the_path_as_it_was_sent(api: HeardApi, folders: Folders, name: str) -> None:
    """The root in the listing keeps a trailing slash and a detour."""
    sent = f"{folders.other}/../whole/"
    assert (await api.load(name, sent)).status == 200
    assert (await api.listed())[name] == sent


async def test_adapters_are_listed_in_the_order_of_their_loads(api: HeardApi, folders: Folders, name: str) -> None:
    """Later loads stand further down, and a reload moves an adapter to the end."""
    names = [f"{name}-{letter}" for letter in "cab"]
    for each in names:
        assert (await api.load(each, folders.whole)).status == 200
    assert [each for each in await api.listed() if each in names] == names
    assert (await api.unload(names[0])).status == 200
    assert (await api.load(names[0], folders.whole)).status == 200
    assert [each for each in await api.listed() if each in names] == [*names[1:], names[0]]
