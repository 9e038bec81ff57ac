"""Whatever stands in an adapter's folder, it is judged soon, without growing, and in sentences that end."""

from __future__ import annotations

import json
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_sidecar.files.peft import Engine, Folder, Limits, Weights, check
from lora_sidecar.files.safetensors import HEADER_BYTES, BaseShape
from tests.support.adapters import WEIGHTS

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
KEYS = ("r", "lora_alpha", "target_modules", "rank_pattern", "modules_to_save", "bias", "init_lora_weights", "use_dora")
SETTINGS = st.dictionaries(st.sampled_from(KEYS), JSON)
A_NAME = ("a.q_proj.lora_A.weight", "a.q_proj.lora_B.weight", "__metadata__", "a.bias")
TENSORS = JSON | st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(("F32", "BF16")) | JSON,
        "shape": st.lists(st.integers(-1, 20), max_size=3) | JSON,
        "data_offsets": st.tuples(st.integers(0, 50), st.integers(0, 50)) | JSON,
    }
)
ENTRIES = st.dictionaries(st.text(max_size=8) | st.sampled_from(A_NAME), TENSORS, max_size=4)
CONFIGS = st.binary(max_size=200) | SETTINGS.map(lambda one: json.dumps(one).encode())
HEADERS = st.binary(max_size=200) | ENTRIES.map(lambda one: json.dumps(one).encode())
ENGINES: tuple[Engine | None, ...] = ("vllm", "sglang", None)
STRICT = Limits(1, allow_pickle=False, roots=("/r",), base=BaseShape(1, {"q_proj": (8, 8)}))


@given(CONFIGS, HEADERS, st.integers(-60, 60), st.sampled_from(ENGINES))
@settings(max_examples=300)
def test_any_folder_is_judged(config: bytes, header: bytes, more: int, engine: Engine | None) -> None:
    """And each finding has a sentence, a hint and no end."""
    data = len(header).to_bytes(8, "little") + header
    folder = Folder("/a", "/a", config, Weights(WEIGHTS, max(0, len(data) + more), data))
    limits = Limits(STRICT.max_rank, STRICT.allow_pickle, STRICT.roots, STRICT.base, engine)
    for one in check(folder, limits):
        assert one.message
        assert one.hint
        assert len(one.message) < 1000
        assert one.message.isprintable()


def _header(text: bytes) -> tuple[bytes, Weights]:
    data = len(text).to_bytes(8, "little") + text
    return b"{}", Weights(WEIGHTS, len(data) + 8, data)


def _filled(unit: bytes, size: int, before: bytes = b"", after: bytes = b"") -> bytes:
    """As many units as fit, with commas between them."""
    return before + b",".join([unit] * (size // (len(unit) + 1))) + after


def _numbered(unit: bytes, size: int) -> bytes:
    """An object with as many members as fit, each with a name of its own."""
    return b"{" + b",".join(b'"%x":%s' % (n, unit) for n in range(size // (len(unit) + 9))) + b"}"


_M = 2**20
_NUMBER = b"9" * 4299
CONFIG_SIZE = 8 * _M

HOSTILE: dict[str, tuple[bytes, Weights | None]] = {
    "shapes of long numbers": _header(
        _filled(_NUMBER, HEADER_BYTES - 100, b'{"a":{"shape":[', b'],"data_offsets":[0,1]}}')
    ),
    "a shape without end": _header(_filled(b"4611686018427387904", HEADER_BYTES - 100, b'{"a":{"shape":[', b"]}}")),
    "a million tensors": _header(_numbered(b"{}", HEADER_BYTES)),
    "many real tensors": _header(_numbered(b'{"dtype":"BF16","shape":[8,128],"data_offsets":[0,8]}', HEADER_BYTES)),
    "a header of empty objects": _header(_filled(b"{}", HEADER_BYTES - 20, b"[", b"]")),
    "metadata of empty objects": _header(_filled(b"{}", HEADER_BYTES - 40, b'{"__metadata__":[', b"]}")),
    "a nested header": _header(b'{"a":' * (HEADER_BYTES // 5)),
    "a tensor's endless name": _header(b'{"' + b"x" * (HEADER_BYTES - 100) + b'":{"shape":[0],"data_offsets":[0,8]}}'),
    "a header of spaces": _header(b" " * HEADER_BYTES),
    "a config of empty objects": (_filled(b"{}", CONFIG_SIZE - 20, b'{"a":[', b"]}"), None),
    "a rank pattern of empty objects": (_filled(b"{}", CONFIG_SIZE - 40, b'{"rank_pattern":[', b"]}"), None),
    "a config of long numbers": (_filled(_NUMBER, CONFIG_SIZE - 20, b'{"r":[', b"]}"), None),
    "a rank without end": (b'{"r":' + b"9" * (CONFIG_SIZE - 20) + b"}", None),
    "a rank of many digits": (b'{"r":' + _NUMBER + b',"lora_alpha":' + _NUMBER + b',"target_modules":[]}', None),
    "a config of half a million members": (_numbered(b"{}", CONFIG_SIZE), None),
    "a nested config": (b'{"a":' * (CONFIG_SIZE // 5), None),
    "a config that only Python reads": (_filled(b"{}", _M - 40, b'{"x":NaN,"a":[', b"]}"), None),
    "long numbers that only Python reads": (_filled(_NUMBER, _M - 40, b'{"x":NaN,"r":[', b"]}"), None),
    "quotes without an end": (b'{"' + b'"' * (_M - 20), None),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_folder_is_judged_soon(name: str) -> None:
    """Bounded bytes are bounded work: less than a second, and less memory than an eighth of the pod's limit."""
    config, weights = HOSTILE[name]
    folder = Folder("/a", "/a", config, weights)
    began = time.process_time()
    found = check(folder, STRICT)
    took = time.process_time() - began
    tracemalloc.start()
    try:
        check(folder, STRICT)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert took < 1.0
    assert most < 48 * _M
    assert all(len(one.message) < 1000 for one in found)
