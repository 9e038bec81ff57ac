"""Where a server's API key is, so that the sidecar can be given it as a file.

The trap guarded against is a key in a place where it can be read: what is found here is where the key lies, and only
a key that is written out in the manifest is known as a text.
"""

from __future__ import annotations

from collections.abc import Mapping as Map

from msgspec import Struct

from lora_sidecar.cli.inject.manifests.value import Path, Value, entries, mapping, text
from lora_sidecar.cli.inject.remarks import Problem, Remark
from lora_sidecar.cli.inject.servers.launch import UNKNOWN, marked


class SecretKey(Struct, frozen=True):
    """A key in a Secret."""

    secret: str
    key: str


class KeyFile(Struct, frozen=True):
    """A key in a file that the server's container reads, by its absolute path there."""

    path: str


class KeyText(Struct, frozen=True):
    """A key that is written out in the manifest."""

    text: str

    def __repr__(self) -> str:
        return "KeyText(…)"


Key = SecretKey | KeyFile | KeyText


def key_of(container: Map[str, Value], word: str, place: Path, remarks: list[Remark]) -> Key | None:
    """Return where a key is that a flag or a variable gives, or None with a problem in `remarks`."""
    if UNKNOWN not in word:
        return KeyText(word)
    path = marked(word, "file")
    if path is not None and path.startswith("/"):
        return KeyFile(path)
    name = marked(word, "env")
    for one in entries(container.get("env")):
        source = mapping(mapping(one.get("valueFrom")).get("secretKeyRef"))
        if name is not None and one.get("name") == name and source:
            return SecretKey(text(source.get("name")), text(source.get("key")))
    hint = "take it from a Secret (env with secretKeyRef), or give --config with an api_key_file"
    remarks.append(Problem(place, "has an API key that is not in the manifest", hint))
    return None
