"""What a container runs: which server, where it listens, and what its flags say of adapters and keys.

The trap guarded against is a guess that costs the server: a variable that makes vLLM refuse to start, a port that is
another one's. What cannot be known is a problem with a reason, or a note, and never an assumption that nobody sees.
Facts of vLLM and SGLang are as read in their sources, up to vLLM 0.33 and SGLang 0.5.23.
"""

from __future__ import annotations

import re
from collections.abc import Mapping as Map
from enum import StrEnum
from typing import Final

from msgspec import Struct, structs

from lora_sidecar.cli.inject.manifests.value import Path, Value, entries, text
from lora_sidecar.cli.inject.remarks import Note, Problem, Remark
from lora_sidecar.cli.inject.servers.adapters import Declared, declared
from lora_sidecar.cli.inject.servers.flags import Flags, flags_of, is_known
from lora_sidecar.cli.inject.servers.keys import Key, key_of
from lora_sidecar.cli.inject.servers.launch import UNKNOWN, Command, commands, environment

RUNTIME_UPDATING: Final = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"
ENABLE_LORA: Final = "--enable-lora"
LAUNCHES: Final = re.compile(
    r"-m(?:\s|\\\r?\n)+(?:vllm\.entrypoints\.openai\.api_server|sglang\.launch_server)(?![\w.])"
    r"|(?<![\w.-])(?:vllm|vllm-rs|sglang)(?:\s|\\\r?\n)+serve(?![\w.-])"
    r"""(?:(?:[ \t]|\\\r?\n)+(?:"[^"\n\\]*"|'[^'\n\\]*'|[^\s\\;&|"'-][^\s\\;&|"']*)(?=[\s;&|]|\Z))?"""
)
"""Where in a shell's text a server's flags may begin: behind the command, and behind the model if one follows."""

_VLLM_IMAGE: Final = re.compile(
    r"vllm(-(openai|cpu|rocm|xpu|tpu|hpu|gaudi|ascend|neuron)([-.].*)?)?|llm-d-inference-sim"
)
_SGLANG_IMAGE: Final = re.compile(r"sglang([-.](?!router|gateway).*)?")
_ANY_HOST: Final = frozenset({"", "0.0.0.0", "::", "127.0.0.1", "localhost"})
_OWN_LOAD_BALANCER: Final = (
    "--data-parallel-rank",
    "-dpn",
    "--data-parallel-external-lb",
    "-dpe",
    "--data-parallel-multi-port-external-lb",
)
_HIGHEST_PORT: Final = 65535


class Engine(StrEnum):
    """A kind of server."""

    VLLM = "vllm"
    SGLANG = "sglang"

    @property
    def label(self) -> str:
        """Its name, as people write it."""
        return "vLLM" if self is Engine.VLLM else "SGLang"

    @property
    def port(self) -> int:
        """Where it listens unless it is told otherwise."""
        return 8000 if self is Engine.VLLM else 30000


class Server(Struct, frozen=True):
    """One server of a pod. `url` is how it is reached from the pod itself, or why that cannot be known."""

    engine: Engine
    container: str
    url: str | Problem
    certificate: str | None = None
    base_model: str | None = None
    max_lora_rank: int | None = None
    max_cpu_loras: int | None = None
    api_key: Key | None = None
    admin_api_key: Key | None = None
    adapters: tuple[Declared, ...] = ()


class Found(Struct, frozen=True):
    """What a container was found to run. Paths are inside the container.

    `lacks_updating`: vLLM is not told to accept loads at run time. `lacks_lora`: where `--enable-lora` is to be put,
    each the path of a list of words or of a shell text; empty where nothing has to be put anywhere.
    """

    servers: tuple[Server, ...]
    lacks_updating: bool
    lacks_lora: tuple[Path, ...]
    remarks: tuple[Remark, ...]


class _Launch(Struct, frozen=True):
    engine: Engine
    flags: Flags
    place: Path
    variables: Map[str, str]


def examine(container: Map[str, Value], *, chosen: bool, one_of_a_group: bool) -> Found | None:
    """Return what a container runs, or None where it is no server that is known.

    `chosen`: somebody named the container, so it is a server even where nothing says so. `one_of_a_group`: the pod is
    the one of its group that answers requests, so it may be told of other nodes.
    """
    launches = [one for one in _launches(container, chosen=chosen) if not one.flags.has("--headless")]
    if not launches:
        return None
    remarks: list[Remark] = []
    servers: dict[str, Server] = {}
    for launch in launches:
        for server in _servers(container, launch, remarks):
            where = server.url if isinstance(server.url, str) else ""
            servers.setdefault(where, server)
        if not one_of_a_group and launch.flags.one("--nnodes", "-n") not in {None, "1"}:
            reason = "runs one server over several nodes (--nnodes), of which only the first one answers requests"
            remarks.append(Problem(launch.place, reason, "use a LeaderWorkerSet, whose leader alone gets the sidecar"))
    lacks_updating = any(_lacks_updating(container, launch, remarks) for launch in launches)
    if lacks_updating:
        for launch in launches:
            _check_api_servers(launch, remarks)
    lacks_lora = tuple(dict.fromkeys(one.place for one in launches if not _has_lora(one)))
    return Found(tuple(servers.values()), lacks_updating, lacks_lora, tuple(dict.fromkeys(remarks)))


def cannot_enable_lora(container: Map[str, Value], found: Found) -> Problem | None:
    """Return why a server that was found without `--enable-lora` cannot be given it, or None."""
    for launch in _launches(container, chosen=True):
        # SGLang takes rank and modules from the adapters that it starts with, and has to be told where there are none.
        told = launch.flags.has("--max-lora-rank") and launch.flags.has("--lora-target-modules")
        if launch.engine is Engine.SGLANG and not told:
            reason = "SGLang starts with --enable-lora only if it has --max-lora-rank and --lora-target-modules too"
            return Problem(launch.place, reason, "add all three by hand")
    changed = dict(container)
    for key, *index in found.lacks_lora:
        listed = container.get(str(key))
        words = list(listed) if isinstance(listed, list) else []
        if index:
            words = [
                with_lora(word) if isinstance(word, str) and [at] == index else word for at, word in enumerate(words)
            ]
        else:
            words.append(ENABLE_LORA)
        changed[str(key)] = words
    after = examine(changed, chosen=True, one_of_a_group=True)
    if after is None or after.lacks_lora or after.servers != found.servers:
        return Problem(found.lacks_lora[0], f"cannot be given {ENABLE_LORA} where it is", "put it there by hand")
    return None


def with_lora(script: str) -> str:
    """Return a shell's text in which each server is given `--enable-lora`."""
    return LAUNCHES.sub(lambda found: f"{found[0]} {ENABLE_LORA}", script)


def _launches(container: Map[str, Value], *, chosen: bool) -> list[_Launch]:
    variables = environment(container)
    found = commands(container)
    launches = [launch for command in found if (launch := _launch(command, variables)) is not None]
    if launches:
        return launches
    engine = _engine_of_image(text(container.get("image")))
    if not container.get("command") and engine is not None:
        words = [word for command in found for word in command.words]
        return [_Launch(engine, flags_of(words), ("args",), variables)]
    if chosen:
        words = list(found[-1].words) if found else []
        return [_Launch(engine or Engine.VLLM, flags_of(words), found[-1].place if found else ("args",), variables)]
    return []


def _launch(command: Command, variables: Map[str, str]) -> _Launch | None:
    words = command.words
    known = {**variables, **command.assigned}
    for index in range(len(words) - 1):
        first, second = words[index].rpartition("/")[2], words[index + 1]
        match first, second:
            case ("vllm" | "vllm-rs", "serve") | ("-m", "vllm.entrypoints.openai.api_server"):
                engine = Engine.VLLM
            case ("sglang", "serve") | ("-m", "sglang.launch_server"):
                engine = Engine.SGLANG
            case _:
                continue
        return _Launch(engine, flags_of(words[index + 2 :]), command.place, known)
    return None


def looks_like_a_server(container: Map[str, Value]) -> bool:
    """Whether a container has a server's image, whatever it runs."""
    return _engine_of_image(text(container.get("image"))) is not None


def _engine_of_image(image: str) -> Engine | None:
    name = image.partition("@")[0].rpartition("/")[2].partition(":")[0]
    if _VLLM_IMAGE.fullmatch(name):
        return Engine.VLLM
    return Engine.SGLANG if _SGLANG_IMAGE.fullmatch(name) else None


def _servers(container: Map[str, Value], launch: _Launch, remarks: list[Remark]) -> list[Server]:
    flags = launch.flags
    certificate = flags.one("--ssl-certfile")
    models = flags.all("--served-model-name")
    adapters, others = declared(flags.all("--lora-modules"), flags.all("--lora-paths"))
    remarks += [Note(launch.place, other) for other in others]
    key, admin = flags.one("--api-key"), flags.one("--admin-api-key")
    if key is None and launch.engine is Engine.VLLM:
        key = launch.variables.get("VLLM_API_KEY")
    server = Server(
        engine=launch.engine,
        container=text(container.get("name")),
        url="",
        certificate=certificate if is_known(certificate) else None,
        base_model=models[0] if models and is_known(models[0]) else None,
        max_lora_rank=flags.number("--max-lora-rank"),
        max_cpu_loras=flags.number("--max-cpu-loras"),
        api_key=key_of(container, key, launch.place, remarks) if key else None,
        admin_api_key=key_of(container, admin, launch.place, remarks) if admin else None,
        adapters=adapters,
    )
    if launch.engine is Engine.SGLANG and flags.one("--dp-size", "--data-parallel-size", "--dp") not in {None, "1"}:
        remarks.append(Note(launch.place, "SGLang refuses to load adapters at run time with data parallelism (0.5.23)"))
    return [structs.replace(server, url=url) for url in _urls(container, launch, remarks)]


def _urls(container: Map[str, Value], launch: _Launch, remarks: list[Remark]) -> list[str | Problem]:
    flags = launch.flags
    socket = flags.one("--uds")
    if socket is not None:
        if is_known(socket) and socket.startswith("/"):
            return [f"unix://{socket}"]
        return [Problem(launch.place, f"listens on a socket that the manifest does not name (--uds {shown(socket)})")]
    host = (flags.one("--host") or "").strip("[]")
    if host not in {*_ANY_HOST, "::1"}:
        reason = f"listens on {shown(host)} alone (--host), and the sidecar reaches it on 127.0.0.1"
        return [Problem(launch.place, reason, "leave --host out, or give --config with the url")]
    port = _port(container, launch, remarks)
    if isinstance(port, Problem):
        return [port]
    scheme = "https" if flags.has("--ssl-certfile") else "http"
    place = "[::1]" if host == "::1" else "127.0.0.1"
    count = 1
    if flags.has("--data-parallel-multi-port-external-lb"):
        count = flags.number("--data-parallel-size-local", "-dpl") or flags.number("--data-parallel-size", "-dp") or 1
    return [f"{scheme}://{place}:{port + step}" for step in range(count)]


def _port(container: Map[str, Value], launch: _Launch, remarks: list[Remark]) -> int | Problem:
    given, flags = launch.flags.one("--port"), launch.flags
    if given is None and not flags.has("--config"):
        return launch.engine.port
    port = flags.number("--port")
    if port is not None and 0 < port <= _HIGHEST_PORT:
        return port
    listed = [text(one.get("containerPort")) for one in entries(container.get("ports"))]
    source = f"--config {shown(flags.one('--config') or '')}" if given is None else f"--port {shown(given)}"
    if len(listed) == 1 and listed[0].isdigit():
        remarks.append(Note(launch.place, f"its port ({source}) is taken to be {listed[0]}, the only containerPort"))
        return int(listed[0])
    return Problem(launch.place, f"its port is not in the manifest ({source})", "give --config with the url")


def _lacks_updating(container: Map[str, Value], launch: _Launch, remarks: list[Remark]) -> bool:
    """Whether vLLM would have no routes to load adapters by, for want of the variable that adds them."""
    if launch.engine is Engine.SGLANG:
        return False
    value = launch.variables.get(RUNTIME_UPDATING)
    if launch.variables.get("VLLM_USE_RUST_FRONTEND") in {"1", "true", "True"}:
        prefixes = "VLLM_RUNTIME_LORA_ALLOWED_PATH_PREFIXES"
        if prefixes not in launch.variables:
            remarks.append(Note(("env",), f"vLLM's Rust frontend loads from folders only where {prefixes} names them"))
    if value is None:
        return True
    if UNKNOWN in value:
        remarks.append(Note(("env",), f"{RUNTIME_UPDATING} is set from elsewhere: it must be True there"))
    elif value.strip().lower() not in {"1", "true"}:
        reason = f"{RUNTIME_UPDATING} is {value!r}, so vLLM has no routes to load adapters by"
        remarks.append(Problem(_path_of_variable(container), reason, "set it to True"))
    return False


def _path_of_variable(container: Map[str, Value]) -> Path:
    listed = container.get("env")
    for index, one in enumerate(listed if isinstance(listed, list) else []):
        if isinstance(one, dict) and one.get("name") == RUNTIME_UPDATING:
            return ("env", index)
    return ("args",)


def _check_api_servers(launch: _Launch, remarks: list[Remark]) -> None:
    """Refuse what vLLM refuses at its start: loads at run time with several API servers (0.9.2 and later)."""
    flags = launch.flags
    if launch.engine is Engine.SGLANG or launch.variables.get("VLLM_USE_RUST_FRONTEND") in {"1", "true", "True"}:
        return
    reason = f"vLLM does not start with {RUNTIME_UPDATING} and several API servers"
    count = flags.one("--api-server-count", "-asc")
    size = flags.one("--data-parallel-size", "-dp")
    if count is not None:
        if count != "1":
            remarks.append(Problem(launch.place, f"{reason} (--api-server-count {shown(count)})", "make that 1"))
    elif size is not None and size != "1" and not flags.has(*_OWN_LOAD_BALANCER):
        why = f"{reason}: since 0.15 there are as many as --data-parallel-size says ({shown(size)})"
        remarks.append(Problem(launch.place, why, "add --api-server-count 1"))


def _has_lora(launch: _Launch) -> bool:
    return launch.flags.has(ENABLE_LORA) or (launch.engine is Engine.SGLANG and launch.flags.has("--lora-paths"))


def shown(word: str) -> str:
    """Return a word fit for a message: what is not in the manifest is an ellipsis."""
    return re.sub(f"{UNKNOWN}(?:[a-z]+:[^{UNKNOWN}]*{UNKNOWN})?", "…", word)
