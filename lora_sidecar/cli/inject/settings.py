"""The config that a sidecar is given, and which files of the pod it needs for it.

The trap guarded against is a config that names what nobody mounted, or a server that is not the one of the pod. A
config made of what was found declares what the server is started with and leaves all else at its default; a config
that somebody gives is held against what was found.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping as Map
from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from lora_sidecar.cli.inject.manifests import write
from lora_sidecar.cli.inject.manifests.value import Value, entries, text
from lora_sidecar.cli.inject.remarks import Note, Problem, Remark
from lora_sidecar.cli.inject.servers.engine import Server
from lora_sidecar.cli.inject.servers.keys import Key, KeyFile, KeyText, SecretKey
from lora_sidecar.config.inventory import ServerConfig
from lora_sidecar.config.load import parse
from lora_sidecar.config.settings import Config
from lora_sidecar.config.values import is_loopback, split_bind

_SECRETS: Final = "/var/run/secrets"
_LONGEST_STEM: Final = 50


class Given(Struct, frozen=True):
    """A config that somebody gives: its text, and what it says."""

    text: str
    config: Config


class SecretMount(Struct, frozen=True):
    """A Secret's keys as files of one folder: `items` are pairs of a key and a file's name.

    `secret` is None for the Secret that is made of the keys that are written out in the manifest.
    """

    volume: str
    secret: str | None
    folder: str
    items: tuple[tuple[str, str], ...]


class SharedMount(Struct, frozen=True):
    """A volume of the server's container, to be seen by the sidecar at the same path."""

    volume: str
    path: str
    sub_path: str | None


class Settings(Struct, frozen=True):
    """A sidecar's config as text, and what its container needs for it; `secrets` are keys that were written out."""

    text: str
    ops_port: int
    control_port: int
    state: str
    secret_mounts: tuple[SecretMount, ...]
    shared_mounts: tuple[SharedMount, ...]
    secrets: tuple[tuple[str, str], ...]


class _Needs:
    """Collects what has to be mounted, each once."""

    def __init__(self, remarks: list[Remark]) -> None:
        self.secret_mounts: list[SecretMount] = []
        self.shared_mounts: list[SharedMount] = []
        self.secrets: dict[str, str] = {}
        self.remarks = remarks

    def key(self, key: Key, path: str, label: str, container: Map[str, Value]) -> None:
        """Have a key at a path of the sidecar's; `label` tells its volume from others."""
        folder, file = posixpath.split(path)
        match key:
            case SecretKey():
                self._mount(SecretMount(f"lora-sidecar-{label}", key.secret, folder, ((key.key, file),)))
            case KeyText():
                self.secrets[label] = key.text
                self._mount(SecretMount(f"lora-sidecar-{label}", None, folder, ((label, file),)))
            case KeyFile():
                self.file(key.path, container)

    def file(self, path: str, container: Map[str, Value]) -> None:
        """Have a file of the server's container at its own path."""
        covering = [
            mount
            for mount in entries(container.get("volumeMounts"))
            if path.startswith(text(mount.get("mountPath")).rstrip("/") + "/") or path == mount.get("mountPath")
        ]
        if not covering:
            reason = f"{path} lies on no volume that could be shared with the sidecar"
            self.remarks.append(Problem(("volumeMounts",), reason, "mount a volume there, or give --config without it"))
            return
        mount = max(covering, key=lambda one: len(text(one.get("mountPath"))))
        if "subPathExpr" in mount:
            self.remarks.append(Problem(("volumeMounts",), f"{path} lies on a volume with a subPathExpr"))
            return
        shared = SharedMount(text(mount["name"]), text(mount["mountPath"]), text(mount.get("subPath")) or None)
        if shared not in self.shared_mounts:
            self.shared_mounts.append(shared)

    def _mount(self, mount: SecretMount) -> None:
        if any(one.folder == mount.folder for one in self.secret_mounts):
            reason = f"two keys are to be files of {mount.folder}, which is one volume"
            self.remarks.append(Problem((), reason, "give each a folder of its own in the config"))
            return
        self.secret_mounts.append(mount)


def made_of(found: Sequence[tuple[Map[str, Value], Server]], remarks: list[Remark]) -> Settings | None:
    """Return the settings made of the servers of a pod, each with its container; None with problems in `remarks`."""
    needs = _Needs(remarks)
    servers: list[Value] = []
    adapters: dict[str, tuple[str, list[Value]]] = {}
    names = _names([server for _, server in found])
    for index, ((container, server), name) in enumerate(zip(found, names, strict=True)):
        servers.append(_server(container, server, name, f"-{index}" if len(names) > 1 else "", needs))
        for adapter in server.adapters:
            path, holders = adapters.setdefault(adapter.name, (adapter.path, []))
            if path == adapter.path:
                holders.append(name)
            else:
                remarks.append(Note((), f"the adapter {adapter.name} has two paths: {path} is declared"))
    if any(isinstance(remark, Problem) for remark in remarks):
        return None
    listed: list[Value] = [
        {"name": name, "path": path} | ({"servers": holders} if len(holders) < len(names) else {})
        for name, (path, holders) in adapters.items()
    ]
    document: dict[str, Value] = {"servers": servers}
    if listed:
        document["adapters"] = listed
    made = write.block(document, indented=True)
    return _settings(made, parse(made.encode(), "the config that was made"), needs)


def given(settings: Given, found: Sequence[tuple[Map[str, Value], Server]], remarks: list[Remark]) -> Settings | None:
    """Return the settings of a config that somebody gives, for a pod's servers; None with problems in `remarks`."""
    needs = _Needs(remarks)
    config = settings.config
    host, port = _bind(config.ops.bind)
    if is_loopback(host) or not port:
        reason = f"the config's ops.bind ({config.ops.bind}) cannot be reached by the kubelet"
        remarks.append(Problem((), reason, "probes need a port on every address, as :9400"))
    for index, (container, server) in enumerate(found):
        match = _match(config, server)
        if match is None:
            urls = ", ".join(one.url for one in config.servers)
            reason = f"the config guards {urls}, and {server.engine.label} listens at {server.url}"
            remarks.append(Problem((), reason, "name that url in the config, or leave others out with --container"))
            continue
        _needs_of(match, server, container, needs, f"-{index}" if len(found) > 1 else "")
    if any(isinstance(remark, Problem) for remark in remarks):
        return None
    return _settings(settings.text, config, needs)


def _settings(made: str, config: Config, needs: _Needs) -> Settings:
    return Settings(
        text=made,
        ops_port=_bind(config.ops.bind)[1],
        control_port=_bind(config.control.bind)[1],
        state=config.checkpoint.directory,
        secret_mounts=tuple(needs.secret_mounts),
        shared_mounts=tuple(needs.shared_mounts),
        secrets=tuple(needs.secrets.items()),
    )


def _bind(bind: str) -> tuple[str, int]:
    split = split_bind(bind)
    assert isinstance(split, tuple)  # noqa: S101 - the config was read, and its reader has checked this
    return split


def _names(servers: Sequence[Server]) -> list[str]:
    """Return a name for each server: its engine's, or where there are several its container's, maybe with a number."""
    if len(servers) == 1:
        return [servers[0].engine.value]
    names: list[str] = []
    containers = [server.container for server in servers]
    for index, name in enumerate(containers):
        number = containers[:index].count(name)
        names.append(name if containers.count(name) == 1 else f"{name[:_LONGEST_STEM]}-{number}")
    return names


def _server(container: Map[str, Value], server: Server, name: str, suffix: str, needs: _Needs) -> dict[str, Value]:
    """Return what the config says of a server; a `url` that is not known is a problem."""
    if isinstance(server.url, Problem):
        needs.remarks.append(server.url)
        return {}
    made: dict[str, Value] = {"name": name, "url": server.url}
    if server.url.startswith("unix://"):
        needs.file(server.url.removeprefix("unix://"), container)
        needs.remarks.append(Note((), "its socket must be writable for user 65532, as whom the sidecar runs"))
    for field, key, folder in (
        ("api_key_file", server.api_key, f"{_SECRETS}/{name}"),
        ("admin_api_key_file", server.admin_api_key, f"{_SECRETS}/{name}-admin"),
    ):
        if key is not None:
            label = field.removesuffix("_file").replace("_", "-")
            path = key.path if isinstance(key, KeyFile) else f"{folder}/{label}"
            made[field] = path
            needs.key(key, path, f"{label}{suffix}", container)
    flags = {
        "base_model": server.base_model,
        "max_lora_rank": server.max_lora_rank,
        "max_cpu_loras": server.max_cpu_loras,
    }
    made |= {field: value for field, value in flags.items() if value is not None}
    if server.url.startswith("https://"):
        made["tls"] = {"ca_file": server.certificate} if server.certificate else None
        if server.certificate:
            needs.file(server.certificate, container)
        needs.remarks.append(
            Note((), "its certificate must be valid for 127.0.0.1 and signed by itself: else give --config with tls")
        )
    return made


def _match(config: Config, server: Server) -> ServerConfig | None:
    """Return the server of a config that is the one found: at the same socket, or at the same port of the pod."""
    if not isinstance(server.url, str):
        return config.servers[0]
    wanted = _place(server.url)
    return next((one for one in config.servers if _place(one.url) == wanted), None)


def _place(url: str) -> str:
    scheme, _, rest = url.partition("://")
    if scheme == "unix":
        return rest
    port = rest.partition("/")[0].rpartition(":")[2]
    return port if port.isdigit() else {"http": "80", "https": "443"}[scheme]


def _needs_of(config: ServerConfig, server: Server, container: Map[str, Value], needs: _Needs, suffix: str) -> None:
    if config.url.startswith("unix://"):
        needs.file(config.url.removeprefix("unix://"), container)
    for field, path, key in (
        ("api_key_file", config.api_key_file, server.api_key),
        ("admin_api_key_file", config.admin_api_key_file, server.admin_api_key),
    ):
        if path is None:
            if key is not None:
                reason = f"{server.engine.label} has an API key, and the config's server {config.name} has no {field}"
                needs.remarks.append(Problem((), reason, f"add {field}: {_SECRETS}/{config.name}/api-key"))
        elif key is None or isinstance(key, KeyFile):
            needs.file(path, container)
        else:
            needs.key(key, path, f"{field.removesuffix('_file').replace('_', '-')}{suffix}", container)
    tls = config.tls
    for path in (tls.ca_file, tls.cert_file, tls.key_file) if tls else ():
        if path is not None:
            needs.file(path, container)
