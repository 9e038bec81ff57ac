from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from lora_sidecar.config.load import parse
from tests.support.paths import ROOT
from tests.unit.cli.inject.support import (
    EXAMPLES,
    MANIFESTS,
    config_of,
    done,
    injected,
    notes,
    objects,
    of_kind,
    pods,
    removed,
)

OUR_OWN = sorted((ROOT / "config/kubernetes/examples").glob("*/vllm.yaml"))
ALL = [*EXAMPLES, *MANIFESTS, *OUR_OWN]
FOUND = {
    "aibrix.yaml": [{"name": "vllm", "url": "http://127.0.0.1:8000", "base_model": "qwen-coder"}],
    "deployment.yaml": [
        {"name": "vllm", "url": "http://127.0.0.1:8000", "max_lora_rank": 64, "max_cpu_loras": 16},
    ],
    "kserve.yaml": [{"name": "vllm", "url": "http://127.0.0.1:8000", "base_model": "qwen2"}],
    "llm-d.yaml": [
        {"name": "vllm", "url": "http://127.0.0.1:8200", "base_model": "qwen3", "max_lora_rank": 32},
        {"name": "vllm", "url": "http://127.0.0.1:8000", "base_model": "qwen3", "max_lora_rank": 32},
    ],
    "production-stack.yaml": [
        {
            "name": "vllm",
            "url": "http://127.0.0.1:8000",
            "api_key_file": "/var/run/secrets/vllm/api-key",
            "base_model": "llama3",
        }
    ],
    "helm-comments.yaml": [{"name": "vllm", "url": "http://127.0.0.1:8000", "base_model": "base"}],
    "kubeai-pod.yaml": [
        {"name": "vllm", "url": "http://127.0.0.1:8000", "base_model": "llama-3.1-8b", "max_cpu_loras": 8},
    ],
    "kubectl-list.json": [{"name": "vllm", "url": "http://127.0.0.1:8008"}],
    "kubectl-list.yaml": [{"name": "vllm", "url": "http://127.0.0.1:8000", "base_model": "base"}],
    "leaderworkerset.yaml": [{"name": "vllm", "url": "http://127.0.0.1:8080"}],
    "sglang.yaml": [
        {
            "name": "sglang",
            "url": "http://127.0.0.1:30000",
            "api_key_file": "/var/run/secrets/sglang/api-key",
            "admin_api_key_file": "/var/run/secrets/sglang-admin/admin-api-key",
        }
    ],
}


def names(paths: list[Path]) -> list[str]:
    """What the cases are called."""
    return [f"{path.parent.name}/{path.name}" for path in paths]


def raw(path: Path) -> str:
    """A manifest to the byte."""
    return path.read_bytes().decode()


@pytest.mark.parametrize("path", ALL, ids=names(ALL))
@pytest.mark.parametrize("options", [{}, {"native": False}, {"enable_lora": True}], ids=["native", "plain", "enable"])
def test_there_and_back(path: Path, options: dict[str, bool]) -> None:
    """A manifest as people have it gets its sidecars, a second run changes nothing, and it comes back to the byte."""
    text = raw(path)

    once = done(text, **options)

    assert injected(once, **options).text == once
    assert removed(once).text == text


@pytest.mark.parametrize("path", [*EXAMPLES, *MANIFESTS], ids=names([*EXAMPLES, *MANIFESTS]))
def test_what_was_found(path: Path) -> None:
    """Each server is found with its port, its names and its limits, and the sidecar accepts the config that is made."""
    text = done(raw(path))

    maps = [one for one in of_kind(text, "ConfigMap") if "sidecar.yaml" in one["data"]]
    configs = [yaml.safe_load(one["data"]["sidecar.yaml"]) for one in maps]
    assert [server for config in configs for server in config["servers"]] == FOUND[path.name]
    for one in maps:
        parse(one["data"]["sidecar.yaml"].encode(), path.name)
    assert len(pods(text)) == len(maps)


@pytest.mark.parametrize("path", ALL, ids=names(ALL))
def test_a_pod_that_starts(path: Path) -> None:
    """Each volume that is mounted is there, each port has one owner, and a ConfigMap is where its pod looks for it."""
    text = done(raw(path))

    maps = {(one["metadata"].get("namespace"), one["metadata"]["name"]) for one in of_kind(text, "ConfigMap")}
    for pod in pods(text):
        containers = [*pod.get("initContainers", []), *pod["containers"]]
        volumes = [volume["name"] for volume in pod["volumes"]]
        assert len(volumes) == len(set(volumes))
        assert {mount["name"] for one in containers for mount in one.get("volumeMounts", [])} <= set(volumes)
        ports = [port["containerPort"] for one in containers for port in one.get("ports", [])]
        assert len(ports) == len(set(ports))
        (volume,) = [one for one in pod["volumes"] if one["name"] == "lora-sidecar-config"]
        assert volume["configMap"]["name"] in {name for _, name in maps}
    for one in objects(text):
        if "lora-sidecar/injected" in one["metadata"].get("annotations", {}) and one["kind"] not in {
            "ConfigMap",
            "Secret",
        }:
            assert (one["metadata"].get("namespace"), f"{one['metadata']['name']}-lora-sidecar") in maps


def test_init_containers_that_were_there() -> None:
    """The sidecar comes behind them: they may download for long."""
    text = done(raw(ROOT / "examples/llm-d.yaml"))

    decode, prefill = pods(text)
    assert [one["name"] for one in decode["initContainers"]] == ["routing-proxy", "lora-sidecar"]
    assert [one["name"] for one in prefill["initContainers"]] == ["lora-sidecar"]


def test_what_the_cluster_makes_by_itself() -> None:
    """A ReplicaSet that a Deployment of the same list makes is left alone: the Deployment would undo a change of it."""
    path = Path(__file__).parent / "manifests/kubectl-list.yaml"

    outcome = injected(raw(path))

    (replica_set,) = of_kind(outcome.text, "ReplicaSet")
    assert replica_set == of_kind(raw(path), "ReplicaSet")[0]
    assert "Deployment vllm makes it" in "".join(str(one) for one in outcome.said)


def test_what_a_controller_makes_that_is_not_here() -> None:
    """A pod that some other object makes is changed, with a word of who may undo it."""
    (note,) = notes(raw(Path(__file__).parent / "manifests/kubeai-pod.yaml"))

    assert note.endswith("is made by Model llama-3.1-8b, which may undo what is added")


def test_a_list_in_json_stays_json() -> None:
    """What was JSON is JSON afterwards, with the indentation that it has."""
    text = done(raw(Path(__file__).parent / "manifests/kubectl-list.json"))

    workload, config_map = json.loads(text)["items"]
    assert workload["spec"]["template"]["spec"]["initContainers"][0]["securityContext"]["runAsUser"] == 65532
    assert config_map["kind"] == "ConfigMap"
    assert '\n                        "initContainers": [\n' in text


def test_adapters_that_the_server_starts_with() -> None:
    """Adapters of --lora-modules and --lora-paths are declared under the names and paths that the server was given."""
    kserve = config_of(done(raw(ROOT / "examples/kserve.yaml")))
    sglang = config_of(done(raw(Path(__file__).parent / "manifests/sglang.yaml")))

    assert kserve["adapters"] == [
        {"name": "sql", "path": "/mnt/adapters/sql"},
        {"name": "chat", "path": "/mnt/adapters/chat"},
    ]
    assert sglang["adapters"] == [{"name": "sql", "path": "/adapters/sql"}]
