from __future__ import annotations

import pytest

from lora_sidecar.config.changes import restart_needed
from lora_sidecar.config.load import parse

BASE = """servers:
- {name: a, url: https://h}
- {name: b, url: http://b}
"""


@pytest.mark.parametrize(
    ("new", "wanted"),
    [
        (BASE, ()),
        ("servers:\n- {name: b, url: http://b:80/}\n- {name: a, url: https://h}\n", ()),
        (BASE.replace("https://h", "https://i"), ("servers[0].url",)),
        (BASE.replace("http://b", "http://b, engine: vllm"), ("servers[1].engine",)),
        (BASE.replace("http://b", "http://b, api_key_file: /k"), ("servers[1].api_key_file",)),
        (BASE.replace("http://b", "http://b, admin_api_key_file: /k"), ("servers[1].admin_api_key_file",)),
        (BASE.replace("https://h", "https://h, tls: {ca_file: /c}"), ("servers[0].tls",)),
        (BASE.replace("http://b", "http://b, base_model: m"), ()),
        (BASE.replace("name: a", "name: c"), ("servers",)),
        (BASE + "- {name: c, url: http://c}\n", ("servers",)),
        (BASE + "adapters: [{name: x, path: /x}]\npolicy: {adopt: {max: 3}}\nrestore: {timeout: 9s}\n", ()),
        (BASE + "heartbeat: {interval: 4s}\nlog: {level: debug}\n", ()),
        (BASE + "checkpoint: {directory: /c}\n", ("checkpoint.directory",)),
        (BASE + "checkpoint: {format: yaml, timeout: 4s}\n", ("checkpoint.format", "checkpoint.timeout")),
        (BASE + "ops: {bind: '127.0.0.1:9400'}\nlog: {format: json}\n", ("ops.bind", "log.format")),
    ],
)
def test_restart_is_asked_for_only_where_it_is_needed(new: str, wanted: tuple[str, ...]) -> None:
    """Exactly the changes that cannot be applied live are named; order and spelling are no change."""
    assert restart_needed(parse(BASE.encode(), "old.yaml"), parse(new.encode(), "new.yaml")) == wanted
