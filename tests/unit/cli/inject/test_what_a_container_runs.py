from __future__ import annotations

import pytest

from tests.unit.cli.inject.support import config_of, deployment, done, injected, notes, objects, pods, refusal

VLLM = "image: vllm/vllm-openai:v0.11.0"
SHELL = "image: my/image\ncommand: [sh, -c]\nargs:\n  - |\n{}"


def script(*lines: str) -> str:
    """A container that runs lines of a shell."""
    return SHELL.format("\n".join(f"    {line}" for line in lines))


def url(text: str) -> str:
    """Where the only server was found to listen."""
    (server,) = config_of(done(text))["servers"]
    return str(server["url"])


@pytest.mark.parametrize(
    ("container", "port"),
    [
        (VLLM, 8000),
        ("image: example.com:5000/team/vllm-openai@sha256:0000", 8000),
        ("image: vllm/vllm-openai-rocm:latest", 8000),
        ("image: vllm-cpu-env", 8000),
        ("image: lmsysorg/sglang:latest", 30000),
        ("image: sglang:latest\nargs: [--port, '31000']", 31000),
        (f"{VLLM}\nargs: [--port=9000]", 9000),
        (f"{VLLM}\nargs: [--model, x, --port, 9000]", 9000),
        (f"{VLLM}\nargs: [x, --port, '9000', --port, '9001']", 9001),
        ("image: any\ncommand: [vllm, serve, x, --port, '9000']", 9000),
        ("image: any\ncommand: [/opt/venv/bin/vllm]\nargs: [serve, x]", 8000),
        ("image: any\ncommand: [python3, -m, vllm.entrypoints.openai.api_server]\nargs: [--port=9000]", 9000),
        ("image: any\ncommand: [python, -m, sglang.launch_server, --model-path, x]", 30000),
        ("image: any\ncommand: [sglang, serve, --port, '9000']", 9000),
        ("image: any\ncommand: [numactl, --cpunodebind=0, vllm, serve, x]\nargs: [--port, '9000']", 9000),
        (script("vllm serve x --port 9000"), 9000),
        (script("set -e", "# vllm serve x --port 1", "exec vllm serve x \\", "  --port 9000 \\", "  --seed 1"), 9000),
        (script("export PORT=9000", "vllm serve x --port $PORT"), 9000),
        (script("PORT=9000 ; vllm serve x --port ${PORT}"), 9000),
        (script("vllm serve x --port ${PORT:-9000} 2>&1 | tee /tmp/log"), 9000),
        (script("CUDA_VISIBLE_DEVICES=0 vllm serve 'a b' --port 9000 && true"), 9000),
        (script("ray start --head --port=6379", "vllm serve x --port 9000"), 9000),
        (script("sleep $(( 1 + 2 )) ; vllm serve x --seed $(date +%s) --port 9000"), 9000),
        ("image: any\ncommand: [/bin/bash, -euo, pipefail, -c, vllm serve x --port 9000]", 9000),
        ("image: any\ncommand: [bash, -lc]\nargs: ['python3 -m sglang.launch_server --port 9000']", 9000),
    ],
)
def test_where_it_listens(container: str, port: int) -> None:
    """A server is found by its command, in a shell or not, or by its image, and its port by the flag or the default."""
    assert url(deployment(container)) == f"http://127.0.0.1:{port}"


@pytest.mark.parametrize(
    "container",
    [
        "image: nginx",
        "image: vllm/vllm-openai:v1\ncommand: [ray, start]",
        "image: vllm/vllm-openai:v1\ncommand: [sh, -c, sleep infinity]",
        "image: vllm/vllm-router",
        "image: lmcache/lmstack-router:v1",
        "image: lmsysorg/sglang-router",
        "image: any\ncommand: [vllm, bench, serve]",
        "image: any\ncommand: [vllm, serve, x, --headless]",
        "image: any\ncommand: [echo, vllm serve]",
        script("bash /vllm-workspace/examples/online_serving/multi-node-serving.sh worker --ray_address=x"),
        script('echo "unbalanced', "vllm serve x"),
    ],
)
def test_what_is_no_server(container: str) -> None:
    """A container that serves nothing is left alone, whatever its image."""
    text = deployment(container)

    outcome = injected(text)

    assert not outcome.refused
    assert outcome.text == text
    assert outcome.said


def test_a_server_that_is_not_recognised() -> None:
    """A server's image that runs something else is named, and --container has it guarded all the same."""
    text = deployment(f"{VLLM}\ncommand: [/start.sh]\nargs: [--port, '9000']")

    assert notes(text) == [
        "9: Deployment model: container vllm has a server's image and runs something else (--container vllm)"
    ]
    (server,) = config_of(done(text, container="vllm"))["servers"]
    assert server == {"name": "vllm", "url": "http://127.0.0.1:9000"}


def test_the_container_that_is_named() -> None:
    """With --container, others are left alone, and a name that nobody has is refused."""
    text = deployment(
        f"{VLLM}\nargs: [--enable-lora]", spec="  - name: other\n    image: vllm/vllm-openai\n    args: [--port=1]"
    )

    assert url_of_named(text) == ["http://127.0.0.1:8000"]
    assert refusal(text, container="nobody") == "1: refused: there is no container nobody"


def url_of_named(text: str) -> list[str]:
    """Where the servers listen that are guarded when one is named."""
    return [server["url"] for server in config_of(done(text, container="vllm"))["servers"]]


def test_two_servers_in_a_pod() -> None:
    """Each server of a pod is guarded by the one sidecar, under its container's name."""
    text = deployment(
        f"{VLLM}\nargs: [--enable-lora]", spec="  - name: other\n    image: vllm/vllm-openai\n    args: [--port=8100]"
    )

    config = config_of(done(text))

    assert config["servers"] == [
        {"name": "vllm", "url": "http://127.0.0.1:8000"},
        {"name": "other", "url": "http://127.0.0.1:8100"},
    ]
    (pod,) = pods(done(text))
    assert all(
        one["env"] == [{"name": "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "value": "True"}] for one in pod["containers"]
    )


def test_several_ports_of_one_server() -> None:
    """Data parallelism with a port for each rank is as many servers, each with adapters of its own (vLLM 0.22)."""
    flags = "--data-parallel-multi-port-external-lb, -dp, '4', --data-parallel-size-local, '2'"
    text = deployment(f"{VLLM}\nargs: [--enable-lora, {flags}]")

    servers = config_of(done(text))["servers"]

    assert [(one["name"], one["url"]) for one in servers] == [
        ("vllm-0", "http://127.0.0.1:8000"),
        ("vllm-1", "http://127.0.0.1:8001"),
    ]


def test_two_branches_of_a_script() -> None:
    """A script that starts one server here and a headless one there has one server."""
    container = script(
        'if [ "$RANK" = 0 ]; then',
        "  exec vllm serve x --port 8200 --enable-lora",
        "else",
        "  exec vllm serve x --port 8200 --enable-lora --headless",
        "fi",
    )

    assert url(deployment(container)) == "http://127.0.0.1:8200"


def test_variables_of_the_container() -> None:
    """$(NAME) and $NAME are what the manifest sets them to."""
    container = f"{VLLM}\nenv: [{{name: PORT, value: '9000'}}, {{name: MODEL, value: base}}]\nargs: [--port, $(PORT)]"

    (server,) = config_of(
        done(deployment(f"{container}\n".replace("$(PORT)]", "$(PORT), --served-model-name, $(MODEL)]")))
    )["servers"]

    assert server == {"name": "vllm", "url": "http://127.0.0.1:9000", "base_model": "base"}


def test_a_port_that_only_the_cluster_knows() -> None:
    """A port that is not in the manifest is taken from the only containerPort, and said so, or refused."""
    known = deployment(f"{VLLM}\nargs: [--enable-lora, --port, $(PORT)]\nports: [{{containerPort: 8080}}]")
    unknown = deployment(f"{VLLM}\nargs: [--enable-lora, --port, $(PORT)]")
    file = deployment(f"{VLLM}\nargs: [--enable-lora, --config, /etc/vllm.yaml]")

    assert url(known) == "http://127.0.0.1:8080"
    assert notes(known) == ["11: Deployment model: its port (--port …) is taken to be 8080, the only containerPort"]
    assert refusal(unknown) == (
        "11: Deployment model: refused: its port is not in the manifest (--port …) (give --config with the url)"
    )
    assert "--config /etc/vllm.yaml" in refusal(file)


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ("", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("'::'", "127.0.0.1"),
        ("'::1'", "[::1]"),
        ("localhost", "127.0.0.1"),
    ],
)
def test_hosts_that_reach_the_pod_itself(value: str, place: str) -> None:
    """What listens on every address, or on the pod's own, is reached from inside it."""
    host = f"--host, {value}, " if value else ""

    assert url(deployment(f"{VLLM}\nargs: [{host}--enable-lora]")) == f"http://{place}:8000"


def test_a_host_that_does_not() -> None:
    """A server that listens on the pod's address alone cannot be reached by a name that the config could give."""
    text = deployment(f"{VLLM}\nargs: [--host, $(POD_IP), --enable-lora]")

    assert "11: Deployment model: refused: listens on … alone (--host)" in refusal(text)


@pytest.mark.parametrize("value", ["True", "true", "1", " TRUE "])
def test_updating_that_is_on(value: str) -> None:
    """A variable that vLLM takes for true is left as it is."""
    text = done(
        deployment(
            f"{VLLM}\nargs: [--enable-lora]\nenv: [{{name: VLLM_ALLOW_RUNTIME_LORA_UPDATING, value: '{value}'}}]"
        )
    )

    (pod,) = pods(text)
    assert pod["containers"][0]["env"] == [{"name": "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "value": value}]


def test_updating_that_a_script_turns_on() -> None:
    """A variable that is set where vLLM is started needs no second one."""
    for line in (
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve x",
        "export VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 ; vllm serve x",
    ):
        (pod,) = pods(done(deployment(script(f"{line} --enable-lora"))))
        assert "env" not in pod["containers"][0]


def test_updating_that_is_off() -> None:
    """A variable that keeps vLLM from having the routes is refused by its line: to add one would be to overrule it."""
    text = deployment(f"{VLLM}\nenv:\n  - name: VLLM_ALLOW_RUNTIME_LORA_UPDATING\n    value: 'False'")

    assert refusal(text) == (
        "12: Deployment model: refused: VLLM_ALLOW_RUNTIME_LORA_UPDATING is 'False', "
        "so vLLM has no routes to load adapters by (set it to True)"
    )


def test_updating_from_elsewhere() -> None:
    """A variable whose value is not in the manifest is said to have to be true."""
    text = deployment(
        f"{VLLM}\nargs: [--enable-lora]\n"
        "env: [{name: VLLM_ALLOW_RUNTIME_LORA_UPDATING, valueFrom: {configMapKeyRef: {name: a, key: b}}}]"
    )

    assert notes(text) == [
        "12: Deployment model: VLLM_ALLOW_RUNTIME_LORA_UPDATING is set from elsewhere: it must be True there"
    ]


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        ("--api-server-count, '2'", "make that 1"),
        ("-asc, '2'", "make that 1"),
        ("--data-parallel-size, '4'", "add --api-server-count 1"),
        ("-dp=4", "add --api-server-count 1"),
    ],
)
def test_several_api_servers(flags: str, hint: str) -> None:
    """VLLM does not start with run-time loads and several API servers: nobody's server is broken by a variable."""
    text = deployment(f"{VLLM}\nargs: [--enable-lora, {flags}]")

    assert "vLLM does not start with VLLM_ALLOW_RUNTIME_LORA_UPDATING and several API servers" in refusal(text)
    assert refusal(text).endswith(f"({hint})")


@pytest.mark.parametrize(
    "flags",
    [
        "--api-server-count, '1', --data-parallel-size, '4'",
        "--data-parallel-size, '4', --data-parallel-rank, '0'",
        "-dp, '4', --data-parallel-external-lb",
    ],
)
def test_one_api_server(flags: str) -> None:
    """Data parallelism with one API server in the pod is no obstacle."""
    assert url(deployment(f"{VLLM}\nargs: [--enable-lora, {flags}]")) == "http://127.0.0.1:8000"


def test_one_server_over_several_nodes() -> None:
    """In a StatefulSet all pods get a sidecar, and all but the first would wait for a server that never answers."""
    text = deployment("image: any\ncommand: [python3, -m, sglang.launch_server, --nnodes, '2', --node-rank, $(RANK)]")

    assert "runs one server over several nodes (--nnodes)" in refusal(text)


def test_without_enable_lora() -> None:
    """A server that would refuse every adapter is guarded, which is said; --enable-lora mends it, and not unasked."""
    text = deployment(f"{VLLM}\nargs:\n  - --model\n  - x")

    assert notes(text) == [
        "11: Deployment model: has no --enable-lora in the manifest, without which it loads no adapter"
    ]
    assert "--enable-lora" not in str(pods(done(text)))
    (pod,) = pods(done(text, enable_lora=True))
    assert pod["containers"][0]["args"] == ["--model", "x", "--enable-lora"]


@pytest.mark.parametrize(
    ("container", "key", "words"),
    [
        (VLLM, "args", ["--enable-lora"]),
        ("image: any\ncommand: [vllm, serve, x]", "command", ["vllm", "serve", "x", "--enable-lora"]),
        (script("exec vllm serve x --seed 1"), "args", ["exec vllm serve x --enable-lora --seed 1\n"]),
        (
            script("vllm serve \\", "  x \\", "  --seed 1"),
            "args",
            ["vllm serve \\\n  x --enable-lora \\\n  --seed 1\n"],
        ),
        (script("vllm serve --config /x"), "args", ["vllm serve --enable-lora --config /x\n"]),
        (
            script("python3 -m vllm.entrypoints.openai.api_server --model x;"),
            "args",
            ["python3 -m vllm.entrypoints.openai.api_server --enable-lora --model x;\n"],
        ),
        (
            'image: any\ncommand: ["sh", "-c", "a;\n   vllm serve x"]',
            "command",
            ["sh", "-c", "a; vllm serve x --enable-lora"],
        ),
    ],
)
def test_enable_lora_wherever_the_flags_are(container: str, key: str, words: list[str]) -> None:
    """The flag goes to the end of a list of words, or behind the command and its model in a shell's text."""
    text = deployment(f"{container}\nports: [{{containerPort: 8000}}]")

    (pod,) = pods(done(text, enable_lora=True))

    assert pod["containers"][0][key] == words


def test_enable_lora_where_it_would_not_start() -> None:
    """SGLang wants rank and modules beside that flag when it starts without an adapter."""
    text = deployment("image: any\ncommand: [python3, -m, sglang.launch_server]")
    whole = text.replace("launch_server]", "launch_server, --max-lora-rank, '16', --lora-target-modules, all]")

    assert "SGLang starts with --enable-lora only if" in refusal(text, enable_lora=True)
    assert "--enable-lora" in done(whole, enable_lora=True)


def test_a_socket_that_only_the_cluster_knows() -> None:
    """A socket by a path that the manifest does not give cannot be named in a config."""
    assert "a socket that the manifest does not name (--uds …)" in refusal(
        deployment(f"{VLLM}\nargs: [--enable-lora, --uds, $(SOCKET)]")
    )


def test_the_rust_frontend() -> None:
    """VLLM's Rust frontend has one API server, and loads only from folders that a variable names, which is said."""
    variable = "{name: VLLM_USE_RUST_FRONTEND, value: '1'}"
    prefixes = "{name: VLLM_RUNTIME_LORA_ALLOWED_PATH_PREFIXES, value: /adapters}"
    container = f"{VLLM}\nargs: [--enable-lora, --api-server-count, '2']\nenv: [{variable}%s]"

    (note,) = notes(deployment(container % ""))
    assert "VLLM_RUNTIME_LORA_ALLOWED_PATH_PREFIXES names them" in note
    assert notes(deployment(container % f", {prefixes}")) == []


def test_data_parallelism_of_sglang() -> None:
    """SGLang with data parallelism is guarded, and said to refuse loads."""
    (note,) = notes(deployment("image: lmsysorg/sglang\nargs: [--enable-lora, --dp-size, '2']"))

    assert "SGLang refuses to load adapters at run time with data parallelism" in note


def test_a_leader_and_its_workers() -> None:
    """A LeaderWorkerSet without a template for its leader is refused: its workers serve no HTTP."""
    text = (
        "apiVersion: leaderworkerset.x-k8s.io/v1\nkind: LeaderWorkerSet\nmetadata: {name: a}\nspec:\n"
        "  leaderWorkerTemplate:\n    workerTemplate:\n      spec:\n"
        "        containers: [{name: v, image: vllm/vllm-openai}]\n"
    )

    assert refusal(text).startswith("6: LeaderWorkerSet a: refused: has no leaderTemplate")


def test_a_template_of_kserves() -> None:
    """What KServe's own template runs is not in the manifest: without a config it is refused."""
    text = (
        "apiVersion: serving.kserve.io/v1alpha1\nkind: LLMInferenceService\nmetadata: {name: a}\nspec:\n"
        "  template:\n    containers:\n      - name: main\n        args: [--enable-lora]\n"
    )

    assert "its command comes from KServe's own template, which may serve TLS" in refusal(text)


def test_kinds_of_other_groups() -> None:
    """A kind that only bears the name of one of Kubernetes' is left alone."""
    text = deployment(f"{VLLM}\nargs: [--enable-lora]").replace("apps/v1", "example.com/v1")

    assert injected(text).text == text
    assert len(objects(text)) == 1
