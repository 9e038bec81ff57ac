"""Decides for one workload what is to be added to its pods, or why nothing can be.

The trap guarded against is a pod that is worse off than before: a port that is taken, a volume of the same name, a
Job that never ends, a sidecar beside a server that answers no requests.
"""

from __future__ import annotations

from collections.abc import Mapping as Map
from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from lora_sidecar.cli.inject import pod
from lora_sidecar.cli.inject.manifests.documents import Object
from lora_sidecar.cli.inject.manifests.value import Path, Value, entries, mapping, text, walk
from lora_sidecar.cli.inject.outcome import Teller
from lora_sidecar.cli.inject.remarks import Note, Problem, Remark
from lora_sidecar.cli.inject.servers.engine import (
    RUNTIME_UPDATING,
    Found,
    Server,
    cannot_enable_lora,
    examine,
    looks_like_a_server,
)
from lora_sidecar.cli.inject.settings import Given, Settings, given, made_of

_KSERVE: Final = frozenset({"LLMInferenceService", "LLMInferenceServiceConfig"})
_KSERVE_SERVER: Final = "main"
_GROUPS: Final = frozenset({"LeaderWorkerSet", *_KSERVE})
_LONGEST_NAME: Final = 253


class Options(Struct, frozen=True):
    """What the person asked for. `container` limits the servers to containers of that name."""

    image: str
    native: bool = True
    container: str | None = None
    enable_lora: bool = False
    config: Given | None = None


class Addition(Struct, frozen=True):
    """What is to be added for one pod, whose spec is at `pod`. Paths are inside the object.

    `items` are pairs of a list and the items that are to be put at its end; `lora` are the places that get
    `--enable-lora`.
    """

    pod: Path
    items: tuple[tuple[Path, tuple[Value, ...]], ...]
    lora: tuple[Path, ...]
    objects: tuple[dict[str, Value], ...]


class _Container(Struct, frozen=True):
    path: Path
    value: Map[str, Value]
    found: Found


def plan(item: Object, options: Options, owner: str | None, teller: Teller) -> tuple[Addition, ...]:
    """Return what is to be added to an object: for each of its pods that runs a server. Remarks go to `teller`.

    `owner` is the object of the same stream that makes this one, if there is one.
    """
    if item.kind == "LeaderWorkerSet" and not item.pods:
        _check_workers(item, teller)
    additions = []
    for path in item.pods:
        spec = mapping(walk(item.value, path))
        servers = _servers(item, path, spec, options, teller)
        if not servers:
            continue
        if _has_sidecar(spec):
            teller.tell(Note(path, "has a sidecar already and is left as it is (inject --remove takes it out)"))
        elif owner is not None:
            teller.tell(Note((), f"is left as it is: {owner} makes it"))
        else:
            _remark(item, servers, options, teller)
            addition = _addition(item, path, spec, servers, options, teller)
            if addition is not None:
                additions.append(addition)
    return tuple(additions)


def _servers(item: Object, path: Path, spec: Map[str, Value], options: Options, teller: Teller) -> list[_Container]:
    found = []
    others = []
    listed = spec.get("containers")
    for index, value in enumerate(listed if isinstance(listed, list) else []):
        if not isinstance(value, dict):
            continue
        name = text(value.get("name"))
        if options.container is not None and name != options.container:
            continue
        place = (*path, "containers", index)
        chosen = options.container is not None or _is_of_kserve(item, value)
        one = examine(value, chosen=chosen, one_of_a_group=item.kind in _GROUPS)
        if one is not None:
            found.append(_Container(place, value, one))
        elif looks_like_a_server(value):
            others.append((place, name))
    if not found:
        for place, name in others:
            teller.tell(
                Note(place, f"container {name} has a server's image and runs something else (--container {name})")
            )
    return found


def _is_of_kserve(item: Object, container: Map[str, Value]) -> bool:
    """Whether a container is the server of a KServe service, of which KServe's own template may say the rest."""
    return item.kind in _KSERVE and container.get("name") == _KSERVE_SERVER


def _remark(item: Object, servers: Sequence[_Container], options: Options, teller: Teller) -> None:
    """Say what is to be said of servers before anything is made of them."""
    maker = item.controller
    if maker is not None:
        teller.tell(Note((), f"is made by {maker[0]} {maker[1]}, which may undo what is added"))
    for one in servers:
        if _is_of_kserve(item, one.value) and not one.value.get("command") and options.config is None:
            reason = "its command comes from KServe's own template, which may serve TLS"
            teller.tell(Problem(one.path, reason, "write command and args out, or give --config with the url"))
        for remark in one.found.remarks:
            teller.tell(_moved(remark, one.path))


def _check_workers(item: Object, teller: Teller) -> None:
    path: Path = ("spec", "leaderWorkerTemplate", "workerTemplate", "spec", "containers")
    for value in entries(walk(item.value, path)):
        if examine(value, chosen=False, one_of_a_group=True) is not None:
            reason = "has no leaderTemplate: all its pods are alike, and only the first one answers requests"
            teller.tell(Problem(path[:3], reason, "write a leaderTemplate: the leader alone gets the sidecar"))
            return


def _has_sidecar(spec: Map[str, Value]) -> bool:
    return any(one.get("name") == pod.SIDECAR for one in _containers(spec))


def _containers(spec: Map[str, Value]) -> list[dict[str, Value]]:
    return [*entries(spec.get("initContainers")), *entries(spec.get("containers"))]


def _addition(
    item: Object, path: Path, spec: Map[str, Value], servers: Sequence[_Container], options: Options, teller: Teller
) -> Addition | None:
    pairs = [(one.value, server) for one in servers for server in one.found.servers]
    remarks: list[Remark] = []
    settings = made_of(pairs, remarks) if options.config is None else given(options.config, pairs, remarks)
    for remark in remarks:
        teller.tell(_moved(remark, servers[0].path))
    lora = _lora(servers, options, teller)
    if settings is None:
        return None
    _check(item, path, spec, settings, pairs, options, teller)
    name = _name(item, path)
    variable: Value = {"name": RUNTIME_UPDATING, "value": "True"}
    sidecar: Value = pod.container(options.image, settings, native=options.native)
    items: list[tuple[Path, tuple[Value, ...]]] = [
        *(((*one.path, "env"), (variable,)) for one in servers if one.found.lacks_updating),
        ((*path, "initContainers" if options.native else "containers"), (sidecar,)),
        ((*path, "volumes"), tuple(pod.volumes(settings, name))),
    ]
    where = " and ".join(
        f"{server.engine.label} in container {server.container} at {server.url}" for _, server in pairs
    )
    teller.tell(Note(path, f"guards {where}; its config is in ConfigMap {name}"))
    return Addition(path, tuple(items), lora, tuple(pod.objects(settings, name, item.namespace, str(item))))


def _lora(servers: Sequence[_Container], options: Options, teller: Teller) -> tuple[Path, ...]:
    places: list[Path] = []
    for one in servers:
        for place in one.found.lacks_lora:
            whole = (*one.path, *place)
            problem = cannot_enable_lora(one.value, one.found)
            if not options.enable_lora:
                teller.tell(Note(whole, "has no --enable-lora in the manifest, without which it loads no adapter"))
            elif problem is not None:
                teller.tell(_moved(problem, one.path))
            else:
                places.append(whole)
    return tuple(places)


def _check(
    item: Object,
    path: Path,
    spec: Map[str, Value],
    settings: Settings,
    pairs: Sequence[tuple[Map[str, Value], Server]],
    options: Options,
    teller: Teller,
) -> None:
    """Refuse what would not run beside the sidecar."""
    if not item.name:
        teller.tell(Problem((), "has no name, after which its ConfigMap could be named", "give it one"))
    if item.kind == "Job" and not options.native:
        teller.tell(Problem(path, "would never complete: a plain container goes on running", "leave --plain out"))
    ours = {text(volume.get("name")) for volume in entries(pod.volumes(settings, ""))}
    for volume in entries(spec.get("volumes")):
        if volume.get("name") in ours:
            teller.tell(Problem((*path, "volumes"), f"has a volume {text(volume.get('name'))} of its own", "rename it"))
    wanted = {str(settings.ops_port): "ops", str(settings.control_port): "control"}
    taken = {text(port.get("containerPort")) for one in _containers(spec) for port in entries(one.get("ports"))}
    taken |= {server.url.rpartition(":")[2] for _, server in pairs if isinstance(server.url, str)}
    for port in sorted(taken & wanted.keys()):
        hint = f"give --config with another {wanted[port]}.bind"
        teller.tell(Problem((*path, "containers"), f"port {port} is taken, on which the sidecar would listen", hint))
    if text(spec.get("hostNetwork")).lower() == "true":
        teller.tell(Note(path, f"is on the host's network: two such pods on a node both want port {settings.ops_port}"))


def _name(item: Object, path: Path) -> str:
    """Return the name of what is added for a pod; a workload with two kinds of pods has two."""
    part = "-prefill" if "prefill" in path else ""
    return f"{item.name}{part}-lora-sidecar"[-_LONGEST_NAME:]


def _moved(remark: Remark, base: Path) -> Remark:
    """Return a remark on a place of a container as one on a place of the object."""
    path = (*base, *remark.path)
    if isinstance(remark, Problem):
        return Problem(path, remark.reason, remark.hint)
    return Note(path, remark.text)
