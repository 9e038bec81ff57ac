"""The small languages inside a config: durations, urls, addresses, paths, names.

Guards against values that are well formed for a library and wrong for this program: a url with a password that
would reach the log, a path relative to a working directory that is not the server's, a bare `5` of unknown unit, and
a regular expression that a name chosen by a client keeps busy for ever. Each reader returns the value, cleaned, or the
`Fault` that a person can act on. None of them touches a file.

The types at the end are what a key is annotated with: `pattern` and lengths are what a JSON Schema can say, `read` is
the whole rule. A `secret` text is never repeated in a message, since people put the key where its file's name belongs.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Final

import re2
from msgspec import Meta, Struct


class Fault(Struct, frozen=True):
    """Why a value is refused: the rule it breaks, and what to write instead (maybe empty)."""

    rule: str
    hint: str = ""


_NUMBER = r"[0-9]{1,9}(\.[0-9]{1,9})?"
DURATION_PATTERN = f"^(?=.)({_NUMBER}h)?({_NUMBER}m)?({_NUMBER}s)?({_NUMBER}ms)?$"
_UNITS = (("h", 3600), ("m", 60), ("s", 1))

LABEL_PATTERN = "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
ABSOLUTE_PATTERN = "^/"
ADAPTER_PATH_PATTERN = "^(/|[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$)"
TRIMMED_PATTERN = r"^\S(.*\S)?$"
URL_PATTERN = "^([Hh][Tt][Tt][Pp][Ss]?|[Uu][Nn][Ii][Xx])://[^?#]+$"
BIND_PATTERN = r"^([^:\[\]]*|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$"

_HOST_LABEL = r"[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
_HOST = re.compile(rf"{_HOST_LABEL}(\.{_HOST_LABEL})*\.?")
_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)*/?")
_LONGEST_HOST = 253
_LONGEST_SOCKET_PATH = 107
_HIGHEST_PORT = 65535
_DEFAULT_PORTS = {"http": 80, "https": 443}

_RE2: Final = re2.Options()
_RE2.log_errors = False  # it would write to stderr by itself
_RE2.max_mem = 256 * 1024  # bytes for one expression: 256 characters of a name then take 30 ms at the very worst


def duration(text: str) -> float | Fault:
    """Return the seconds that a duration such as `5s`, `100ms`, `1m30s` or `0.5s` stands for."""
    found = re.fullmatch(DURATION_PATTERN, text)
    if not found:
        return Fault("is not a duration", "write a number and a unit: 5s, 100ms, 1m30s, 2h")
    hours, minutes, seconds, milliseconds = (found[group] for group in (1, 3, 5, 7))
    total = sum(
        float((part or "0h")[:-1]) * size for part, (_, size) in zip((hours, minutes, seconds), _UNITS, strict=True)
    )
    return total + float((milliseconds or "0ms")[:-2]) / 1000


def format_duration(seconds: float) -> str:
    """Return seconds as the duration a person would write; `duration` reads it back."""
    milliseconds = round(seconds * 1000)
    if abs(milliseconds - seconds * 1000) > 1e-6:  # noqa: PLR2004 - far below the shortest bound
        return f"{seconds:.9f}".rstrip("0") + "s"
    parts = []
    for unit, size in _UNITS:
        count, milliseconds = divmod(milliseconds, size * 1000)
        parts += [f"{count}{unit}"] if count else []
    parts += [f"{milliseconds}ms"] if milliseconds else []
    return "".join(parts) or "0s"


def label(text: str) -> str | Fault:
    """Return a name that can be part of a file name and of a metric."""
    if re.fullmatch(LABEL_PATTERN, text):
        return text
    rule = "must be 1 to 63 lower-case letters, digits and hyphens, with a letter or a digit at both ends"
    return Fault(rule, "it names files and metrics, such as vllm-0")


def absolute_path(text: str) -> str | Fault:
    """Return an absolute path without `.` and `..` steps, and without a slash at its end."""
    if not text.startswith("/"):
        return Fault("must be an absolute path", "begin it with /")
    if {".", ".."} & set(text.split("/")):
        return Fault("must not have . or .. as a step")
    return text.rstrip("/") or "/"


def adapter_path(text: str) -> str | Fault:
    """Return an adapter's path exactly as written (the server lists it so), or a hub id such as `org/name`."""
    if re.fullmatch(ADAPTER_PATH_PATTERN, text) or text.startswith("/"):
        return text
    if text.startswith("~"):
        return Fault("must not begin with ~: the server's home is not known here", "write the absolute path")
    rule = "must be an absolute path, or a hub id such as org/name"
    return Fault(rule, "a relative path would depend on the server's working directory")


def regular_expression(text: str) -> str | Fault:
    """Return a regular expression that `matches` can match."""
    if re.search(r"\{,|\{[0-9,]{9}", text):
        return Fault(
            "has {,n} or a number of digits that RE2 would take as plain text", "write {0,n}, with n up to 1000"
        )
    try:
        re2.compile(text, _RE2)
    except re2.error as error:
        rule = f"is not a regular expression in RE2's syntax: {error.args[0].decode(errors='replace')[:120]}"
        return Fault(rule, "look-around and references back are not in it" if "perl operator" in rule else "")
    return text


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern that `regular_expression` returned matches the whole name.

    Clients choose names, so the time is linear in the name: Python's `re` can take for ever over 40 characters.
    """
    return re2.compile(pattern, _RE2).fullmatch(name) is not None


def split_bind(text: str) -> tuple[str, int] | Fault:
    """Return the host (an IPv6 address without its brackets) and port of `host:port`; port 0 lets the kernel choose.

    The host is empty for every address, IPv4 and IPv6: that is how asyncio and the sockets below it want it.
    """
    host, colon, port = text.rpartition(":")
    if not colon:
        return Fault("must be host:port", "write :9400 for every address, 127.0.0.1:9400 for this pod only")
    if not re.fullmatch("[0-9]{1,5}", port) or int(port) > _HIGHEST_PORT:
        return Fault(f"must end with a port from 0 to {_HIGHEST_PORT}")
    if not host:
        return host, int(port)
    if host.startswith("[") and host.endswith("]"):
        return (host[1:-1], int(port)) if _is_ipv6(host[1:-1]) else Fault("has no IPv6 address between the brackets")
    if ":" in host:
        return Fault("has an IPv6 address without brackets", 'write "[::]:9400"')
    return (host, int(port)) if _is_host(host) else Fault("has no valid host")


def is_loopback(host: str) -> bool:
    """Whether a host to listen on can be reached from this network namespace only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def reachable(host: str) -> str:
    """Return the host at which what listens on `host` is reached from here: loopback where it listens everywhere."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host or "127.0.0.1"
    if not address.is_unspecified:
        return host
    return "::1" if isinstance(address, ipaddress.IPv6Address) else "127.0.0.1"


def bind_address(text: str) -> str | Fault:
    """Return an address to listen on, as written."""
    split = split_bind(text)
    return split if isinstance(split, Fault) else text


def server_url(text: str) -> str | Fault:
    """Return a server's url in one spelling: lower-case scheme and host, no default port, no slash at the end."""
    scheme, separator, rest = text.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in {"http", "https", "unix"}:
        return Fault("must begin with http://, https:// or unix://", "such as http://127.0.0.1:8000")
    if not text.isascii() or " " in text:
        return Fault("must be ASCII without spaces")
    if "?" in rest or "#" in rest:
        return Fault("must have no query (?) and no fragment (#)")
    authority, slash, path = rest.partition("/")
    if "@" in authority:
        return Fault("must have no user and no password", "put the key into a file and name it in api_key_file")
    if scheme == "unix":
        return _socket_url(authority, slash + path)
    if not _PREFIX.fullmatch(slash + path) or {".", ".."} & set(path.split("/")):
        return Fault("has a path that is not a plain prefix", "such as http://127.0.0.1:8000/prefix")
    if path.rstrip("/") == "v1":
        return Fault("must be the server's root, without /v1", "the API's own paths are added to it")
    place = _place(scheme, authority)
    return place if isinstance(place, Fault) else f"{scheme}://{place}{(slash + path).rstrip('/')}"


def _socket_url(authority: str, path: str) -> str | Fault:
    if authority or not path or path.endswith("/") or {".", ".."} & set(path.split("/")):
        return Fault("must name a socket by its absolute path", "such as unix:///run/vllm/vllm.sock: three slashes")
    if len(path) > _LONGEST_SOCKET_PATH:
        return Fault(f"names a socket by {len(path)} bytes: the kernel takes at most {_LONGEST_SOCKET_PATH}")
    return f"unix://{path}"


def _place(scheme: str, authority: str) -> str | Fault:
    bracketed = re.fullmatch(r"\[([^\[\]]*)\](?::(.*))?", authority)
    if bracketed:
        host, port = f"[{bracketed[1].lower()}]", bracketed[2]
        good = _is_ipv6(bracketed[1])
    else:
        name, colon, digits = authority.partition(":")
        host, port = name.lower(), digits if colon else None
        good = _is_host(host)
    if not good:
        return Fault("has no valid host", "such as http://127.0.0.1:8000; an IPv6 address stands in brackets")
    if port is None:
        return host
    if not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) <= _HIGHEST_PORT:
        return Fault(f"must have a port from 1 to {_HIGHEST_PORT}")
    return host if int(port) == _DEFAULT_PORTS[scheme] else f"{host}:{int(port)}"


def _is_host(text: str) -> bool:
    if not _HOST.fullmatch(text) or len(text) > _LONGEST_HOST:
        return False
    # A resolver reads "127.1" or "1.2.3.400" in its own way; with digits at the end it must be a plain address.
    if not text.rstrip(".").rpartition(".")[2].isdigit():
        return True
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return "%" not in text


Text = Annotated[str, Meta(min_length=1, max_length=4096, pattern=TRIMMED_PATTERN)]
Name = Annotated[str, Meta(min_length=1, max_length=256, pattern=TRIMMED_PATTERN)]
NamePattern = Annotated[
    str, Meta(min_length=1, max_length=256, pattern=TRIMMED_PATTERN, extra={"read": regular_expression})
]
Label = Annotated[str, Meta(min_length=1, max_length=63, pattern=LABEL_PATTERN, extra={"read": label})]
AbsolutePath = Annotated[
    str, Meta(min_length=1, max_length=4096, pattern=ABSOLUTE_PATTERN, extra={"read": absolute_path})
]
SecretPath = Annotated[
    str,
    Meta(min_length=1, max_length=4096, pattern=ABSOLUTE_PATTERN, extra={"read": absolute_path, "secret": True}),
]
AdapterPath = Annotated[
    str, Meta(min_length=1, max_length=4096, pattern=ADAPTER_PATH_PATTERN, extra={"read": adapter_path})
]
ServerUrl = Annotated[
    str, Meta(min_length=1, max_length=2048, pattern=URL_PATTERN, extra={"read": server_url, "secret": True})
]
BindAddress = Annotated[str, Meta(min_length=1, max_length=300, pattern=BIND_PATTERN, extra={"read": bind_address})]
