"""What must hold between the keys of a config, however sound each is alone.

Guards against two servers that share a checkpoint, an adapter that no request can reach, and timing in which a slow but
healthy heartbeat fails the liveness probe. A key that was objected to already takes part in no rule, so that one
mistake gives one message.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from lora_sidecar.config.reader import Found, Reading
from lora_sidecar.config.values import Fault, format_duration, is_loopback, split_bind

_ROUNDING = 1e-9  # of sums of durations

_Faults = Iterator[tuple[int, str, Fault]]


def faults(reading: Reading, default: Struct) -> _Faults:
    """Yield line, key path and fault of what is wrong between keys; `default` has the values of keys not given."""
    yield from _unique(reading, "servers", "name")
    yield from _unique(reading, "servers", "url")
    yield from _unique(reading, "adapters", "name")
    for at in reading.entries("servers"):
        yield from _tls(reading, f"servers[{at}]")
        yield from _admin_key(reading, f"servers[{at}]")
    yield from _base_names(reading)
    yield from _server_names(reading)
    yield from _timing(reading, default)
    yield from _control(reading)


def _column(reading: Reading, listing: str, key: str) -> Iterator[tuple[str, Found]]:
    for at in reading.entries(listing):
        path = f"{listing}[{at}].{key}"
        if found := reading.found.get(path):
            yield path, found


def _unique(reading: Reading, listing: str, key: str) -> _Faults:
    first: dict[str, tuple[str, Found]] = {}
    for path, found in _column(reading, listing, key):
        if found.value in first:
            where, earlier = first[found.value]
            yield found.line, path, Fault(f"is the same as {where} on line {earlier.line}")
        else:
            first[found.value] = path, found


def _tls(reading: Reading, server: str) -> _Faults:
    tls, url = reading.found.get(f"{server}.tls"), reading.found.get(f"{server}.url")
    if tls and tls.value is not None and url and not url.value.startswith("https:"):
        yield tls.line, f"{server}.tls", Fault("is only for an https url", "remove it, or write https:// in url")
    given = {
        key: found
        for key in ("cert_file", "key_file")
        if (found := reading.found.get(f"{server}.tls.{key}")) and found.value is not None
    }
    for have, lack in (("cert_file", "key_file"), ("key_file", "cert_file")):
        if have in given and lack not in given and reading.sound(f"{server}.tls.{lack}"):
            yield given[have].line, f"{server}.tls.{have}", Fault(f"needs {lack} beside it")


def _admin_key(reading: Reading, server: str) -> _Faults:
    key, engine = reading.found.get(f"{server}.admin_api_key_file"), reading.found.get(f"{server}.engine")
    if key and key.value is not None and engine and engine.value == "vllm":
        yield key.line, f"{server}.admin_api_key_file", Fault("is only for SGLang", "vLLM has one key: api_key_file")


def _server_names(reading: Reading) -> _Faults:
    """Yield the servers of adapters that are none; while a server, or its name, is objected to nothing can be said."""
    names = [found.value for _, found in _column(reading, "servers", "name")]
    if not names or len(names) != len(reading.entries("servers")):
        return
    known = f"the servers are {', '.join(names)}"  # one text for all objections: it may be long, and they many
    for adapter in reading.entries("adapters"):
        listing = f"adapters[{adapter}].servers"
        seen: set[str] = set()
        for at in reading.entries(listing):
            found = reading.found.get(path := f"{listing}[{at}]")
            if found is None:
                continue
            if found.value not in names:
                yield found.line, path, Fault("is not the name of a server", known)
            elif found.value in seen:
                yield found.line, path, Fault("is named twice")
            seen.add(found.value)


def _base_names(reading: Reading) -> _Faults:
    bases = {found.value: path for path, found in _column(reading, "servers", "base_model")}
    for path, found in _column(reading, "adapters", "name"):
        if found.value in bases:
            rule = f"is the name of the base model, {bases[found.value]}"
            yield found.line, path, Fault(rule, "a request for it would never reach the adapter")


def _control(reading: Reading) -> _Faults:
    bind, token = reading.found.get("control.bind"), reading.found.get("control.token_file")
    address = None if bind is None else split_bind(bind.value)
    if bind is None or isinstance(address, Fault | None) or not reading.sound("control.token_file"):
        return
    if not is_loopback(address[0]) and (token is None or token.value is None):
        rule = f"is {bind.value}, which others can reach: control.token_file is needed"
        hint = "name a file with a token, or bind to 127.0.0.1, which the containers of the pod share"
        yield bind.line, "control.bind", Fault(rule, hint)


def _timing(reading: Reading, default: Struct) -> _Faults:
    beat, back = "heartbeat", "restore.backoff"
    yield from _at_most(reading, default, f"{beat}.away_interval", f"{beat}.interval")
    yield from _at_most(reading, default, f"{back}.initial", f"{back}.max")
    limit = f"{beat}.liveness"
    # One interval is the pause, the other is leeway. Of the saves one is for requests, and one for what was seen.
    parts = {f"{beat}.interval": 2, f"{beat}.probe_timeout": 1, f"{beat}.list_timeout": 1, "checkpoint.timeout": 2}
    if not all(map(reading.sound, (limit, *parts))):
        return
    each = {part: _seconds(reading, default, part) for part in parts}
    need, have = sum(each[part] * times for part, times in parts.items()), _seconds(reading, default, limit)
    if have < need - _ROUNDING:
        terms = [
            f"{'2 x ' if times > 1 else ''}{part.removeprefix(beat + '.')} ({format_duration(each[part])})"
            for part, times in parts.items()
        ]
        rule = f"must be at least {format_duration(need)} = {' + '.join(terms)}, is {format_duration(have)}"
        yield _line(reading, limit, *parts), limit, Fault(rule, "a slow but healthy heartbeat would fail /livez")


def _at_most(reading: Reading, default: Struct, lesser: str, greater: str) -> _Faults:
    if not (reading.sound(lesser) and reading.sound(greater)):
        return
    less, more = _seconds(reading, default, lesser), _seconds(reading, default, greater)
    if less > more + _ROUNDING:
        rule = f"must be at most {greater} ({format_duration(more)}), is {format_duration(less)}"
        yield _line(reading, lesser, greater), lesser, Fault(rule)


def _seconds(reading: Reading, default: Struct, path: str) -> float:
    if found := reading.found.get(path):
        return float(found.value)
    value: Any = default
    for name in path.split("."):
        value = getattr(value, name)
    return float(value)


def _line(reading: Reading, *paths: str) -> int:
    """Return the line of the first of the keys that the file gives: another may be broken by its default."""
    return next(found.line for path in paths if (found := reading.found.get(path)))
