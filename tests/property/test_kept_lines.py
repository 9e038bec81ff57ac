from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_sidecar.checkpoint import lines
from lora_sidecar.checkpoint.decode import Checkpoint, Format
from lora_sidecar.checkpoint.encode import Encoder, encode
from lora_sidecar.core.model import Adapter, Desired, Incarnation, Origin

NAMES = [f"a{number}" for number in range(40)]
FORMATS: tuple[Format, ...] = ("json", "yaml")
STEPS = st.lists(
    st.tuples(
        st.sets(st.sampled_from(NAMES), max_size=5) | st.just(set(NAMES)),
        st.sets(st.sampled_from(NAMES), max_size=5) | st.just(set(NAMES)),
        st.sets(st.sampled_from([*NAMES, "gone"]), max_size=3) | st.none(),
        st.booleans(),
    ),
    max_size=8,
)


@pytest.fixture(autouse=True, scope="module")
def _small_blocks() -> Iterator[None]:
    """So that few names have several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "BLOCK", 4)
        yield


@given(STEPS)
def test_lines_kept_over_any_changes_are_those_of_the_file(
    steps: list[tuple[set[str], set[str], set[str] | None, bool]],
) -> None:
    """Whatever is added, replaced, removed or put in another order, few or many at a time: the bytes are the same."""
    kept = {format_: Encoder(format_) for format_ in FORMATS}
    adapters: dict[str, Adapter] = {}
    for number, (gone, fresh, listed, turned) in enumerate(steps):
        adapters = {name: one for name, one in adapters.items() if name not in gone}
        adapters |= {name: Adapter(name, f"/{number}", Origin.LEARNED) for name in fresh}
        if turned:
            adapters = dict(reversed(adapters.items()))
        names = frozenset(adapters if listed is None else listed)
        checkpoint = Checkpoint(number, "vllm", Desired(dict(adapters), Incarnation(1), names))

        for format_, encoder in kept.items():
            assert b"".join(encoder.pieces(checkpoint)) == encode(checkpoint, format_)
