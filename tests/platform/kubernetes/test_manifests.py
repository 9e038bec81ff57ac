from __future__ import annotations

import copy

import jsonschema
import pytest
import yaml

from lora_sidecar.config.load import parse
from lora_sidecar.config.settings import Config
from tests.platform.kubernetes.rendering import (
    MANIFESTS,
    VERSIONS,
    Resource,
    named,
    of_kind,
    pods,
    read,
    render,
    validate,
)
from tests.support.paths import ROOT

EXAMPLES = sorted(path.name for path in (MANIFESTS / "examples").iterdir())
FILES = ("network-policy.yaml", "pod-monitor.yaml", "pod.yaml")


def _all(source: str) -> list[Resource]:
    return read(MANIFESTS / source) if source in FILES else render(MANIFESTS / "examples" / source)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("source", [*FILES, *EXAMPLES])
def test_the_api_server_would_take_it(source: str, version: str) -> None:
    """Every example, rendered, fits the strict schemas of the oldest and the newest Kubernetes."""
    resources = _all(source)

    assert resources
    for resource in resources:
        validate(resource, version)


@pytest.mark.parametrize("source", ["deployment", "leaderworkerset", "pod-monitor.yaml"])
def test_a_misspelt_field(source: str) -> None:
    """A field that nobody knows is refused, wherever it stands: the validation is no formality."""
    for resource in _all(source):
        wrong = copy.deepcopy(resource)
        match wrong["kind"]:
            case "LeaderWorkerSet":
                next(pods([wrong]))["initContainers"][0]["restartPolice"] = "Always"
            case "PodMonitor":
                wrong["spec"]["podMetricsEndpoints"][0]["ports"] = "lora-sidecar"
            case _:
                wrong["specs"] = {}
        with pytest.raises(jsonschema.ValidationError):
            validate(wrong, VERSIONS[-1])


@pytest.mark.parametrize("source", ["pod.yaml", *EXAMPLES])
def test_the_sidecar_may_do_nothing(source: str) -> None:
    """It has no rights, a read-only root, a memory limit, and no volume but its config and its checkpoints."""
    (pod,) = pods(_all(source))
    sidecar = named(pod["initContainers"], "lora-sidecar")

    assert sidecar["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert "memory" in sidecar["resources"]["limits"]
    assert "cpu" not in sidecar["resources"]["limits"]
    assert [mount["mountPath"] for mount in sidecar["volumeMounts"]] == ["/etc/lora-sidecar", "/var/lib/lora-sidecar"]


@pytest.mark.parametrize("source", ["pod.yaml", *EXAMPLES])
def test_a_pod_that_starts(source: str) -> None:
    """The server waits for nothing of the sidecar's, a new config arrives, and every name that is used exists."""
    (pod,) = pods(_all(source))
    sidecar = named(pod["initContainers"], "lora-sidecar")

    assert sidecar["restartPolicy"] == "Always"
    assert "startupProbe" not in sidecar
    assert not any("subPath" in mount for mount in sidecar["volumeMounts"])
    volumes = {volume["name"] for volume in pod["volumes"]}
    containers = [*pod["initContainers"], *pod["containers"]]
    ports = [port["name"] for container in containers for port in container.get("ports", [])]
    assert len(ports) == len(set(ports))
    assert all(len(port) <= 15 for port in ports)
    for container in containers:
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
            if probe in container:
                assert container[probe]["httpGet"]["port"] in {port["name"] for port in container["ports"]}


@pytest.mark.parametrize("source", ["pod.yaml", *EXAMPLES])
def test_the_config_in_it(source: str) -> None:
    """The config that is mounted is one that the sidecar accepts, for the port and at the path where it looks."""
    resources = _all(source)
    text = of_kind(resources, "ConfigMap")["data"]["sidecar.yaml"]
    (pod,) = pods(resources)

    config = parse(text.encode(), source)

    assert isinstance(config, Config)
    port = named(named(pod["initContainers"], "lora-sidecar")["ports"], "lora-sidecar")["containerPort"]
    assert config.ops.bind == f":{port}"
    (vllm,) = [c for c in pod["containers"] if c["name"].startswith("vllm")]
    assert config.servers[0].url.endswith(f":{vllm['ports'][0]['containerPort']}")
    assert {"name": "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "value": "True"} in vllm["env"]


def test_the_pod_is_what_the_component_adds() -> None:
    """The whole pod and the component agree on the sidecar, but for the image, so that one cannot grow old unseen."""
    (pod,) = pods(_all("pod.yaml"))
    template = of_kind(read(MANIFESTS / "parts/pod-template.yaml"), "PodTemplate")["template"]["spec"]
    ours = named(pod["initContainers"], "lora-sidecar")
    theirs = named(template["containers"], "lora-sidecar")

    assert ours | {"image": "lora-sidecar"} == theirs | {"restartPolicy": "Always"}
    assert [volume for volume in pod["volumes"] if volume["name"].startswith("lora-sidecar")] == template["volumes"]


def test_the_monitor_finds_the_port() -> None:
    """The PodMonitor names the port that the sidecar has."""
    (endpoint,) = of_kind(_all("pod-monitor.yaml"), "PodMonitor")["spec"]["podMetricsEndpoints"]
    template = of_kind(read(MANIFESTS / "parts/pod-template.yaml"), "PodTemplate")["template"]["spec"]

    assert endpoint["port"] in {port["name"] for port in template["containers"][0]["ports"]}


def test_the_pod_of_the_readme() -> None:
    """The README's component and label are the ones that the examples use."""
    readme = (ROOT / "README.md").read_text()
    kustomization = yaml.safe_load((MANIFESTS / "examples/deployment/kustomization.yaml").read_text())

    assert 'lora-sidecar/inject: "true"' in readme
    assert "config/kubernetes/sidecar" in readme
    assert kustomization["components"] == ["../../sidecar"]
