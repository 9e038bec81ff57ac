"""Values as YAML or JSON text, to be put between lines that are there.

The trap guarded against is a text that means something else to who reads it: kubectl reads YAML 1.1, in which `on`,
`0o7` or `1e3` are no texts. PyYAML writes 1.1 and quotes them. Inside braces and brackets everything is written as
JSON, which is YAML too, so that a manifest in JSON stays one.
"""

from __future__ import annotations

import json
from typing import Final

import yaml

from lora_sidecar.cli.inject.manifests.value import Value

_UNLIMITED: Final = 1 << 30


class _Flush(yaml.SafeDumper):
    """Writes a list's dashes below the first letter of its key, as kubectl does."""


class _Indented(_Flush):
    """Writes a list's dashes two columns to the right of its key, as most people do."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002
        super().increase_indent(flow, indentless=False)


def _represent(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Flush.add_representer(str, _represent)


def block(value: Value, *, indented: bool) -> str:
    """Return a value as lines of YAML, the last one ended; `indented` says where the dashes of lists stand."""
    written: str = yaml.dump(
        value,
        Dumper=_Indented if indented else _Flush,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=False,
        width=_UNLIMITED,
    )
    return written


def inline(value: Value) -> str:
    """Return a value as one line of JSON."""
    return json.dumps(value, ensure_ascii=False)


def lines(value: Value, indent: str, unit: str) -> str:
    """Return a value as JSON over several lines, of which all but the first begin with `indent`."""
    return json.dumps(value, ensure_ascii=False, indent=unit).replace("\n", f"\n{indent}")


def as_read(value: Value) -> Value:
    """Return a value as it is read back: all scalars are texts."""
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case list():
            return [as_read(item) for item in value]
        case dict():
            return {key: as_read(item) for key, item in value.items()}
        case _:
            return value
