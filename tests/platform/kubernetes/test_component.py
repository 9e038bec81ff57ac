from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.platform.kubernetes.rendering import (
    MANIFESTS,
    VERSIONS,
    Resource,
    named,
    of_kind,
    pods,
    refusal,
    render,
    validate,
)
from tests.support.paths import ROOT

LABEL = {"lora-sidecar/inject": "true"}
POD: Resource = {"containers": [{"name": "main", "image": "vllm"}]}
KINDS = ("Deployment", "StatefulSet", "LeaderWorkerSet")


def _workload(kind: str, pod: Resource, labels: dict[str, str] = LABEL, name: str = "model") -> Resource:
    template = {"metadata": {"labels": {"app": "model"}}, "spec": pod}
    metadata = {"name": name, "labels": labels}
    if kind == "LeaderWorkerSet":
        worker = {"spec": {"containers": [{"name": "worker", "image": "vllm"}]}}
        spec: Resource = {"leaderWorkerTemplate": {"size": 2, "leaderTemplate": template, "workerTemplate": worker}}
        return {"apiVersion": "leaderworkerset.x-k8s.io/v1", "kind": kind, "metadata": metadata, "spec": spec}
    spec = {"selector": {"matchLabels": {"app": "model"}}, "template": template}
    if kind == "StatefulSet":
        spec["serviceName"] = "model"
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": metadata, "spec": spec}


def _kustomization(
    folder: Path, *resources: Resource, component: str = "sidecar", besides: tuple[str, ...] = (), **more: Any
) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "all.yaml").write_text(yaml.safe_dump_all(resources))
    components = [os.path.relpath(MANIFESTS / name, folder.resolve()) for name in (component, *besides)]
    text = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["all.yaml"],
        "components": components,
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(text | more))
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_bare_pod(tmp_path: Path, kind: str) -> None:
    """Two lines add the sidecar to a workload with nothing in it but a container, and change nothing else of it."""
    before = _workload(kind, POD)

    resources = render(_kustomization(tmp_path, before))

    assert sorted(resource["kind"] for resource in resources) == sorted(["ConfigMap", kind])
    after = of_kind(resources, kind)
    validate(after, VERSIONS[0])
    (pod,) = pods([after])
    sidecar = pod.pop("initContainers")
    volumes = pod.pop("volumes")
    assert after == before
    assert [container["name"] for container in sidecar] == ["lora-sidecar"]
    assert [volume["name"] for volume in volumes] == ["lora-sidecar-config", "lora-sidecar-state"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_pod_with_parts_of_its_own(tmp_path: Path, kind: str) -> None:
    """Init containers and volumes that are there stay, and the sidecar comes after them: they may download for long."""
    pod = POD | {
        "initContainers": [{"name": "download", "image": "downloader"}],
        "volumes": [{"name": "models", "emptyDir": {}}],
    }

    (rendered,) = pods(render(_kustomization(tmp_path, _workload(kind, pod))))

    assert [container["name"] for container in rendered["initContainers"]] == ["download", "lora-sidecar"]
    assert [volume["name"] for volume in rendered["volumes"]] == ["models", "lora-sidecar-config", "lora-sidecar-state"]
    assert rendered["initContainers"][0] == {"name": "download", "image": "downloader"}


@pytest.mark.parametrize("kind", KINDS)
def test_as_a_second_container(tmp_path: Path, kind: str) -> None:
    """The other component adds the same container beside vLLM, for a Kubernetes that knows no native sidecar."""
    resources = render(_kustomization(tmp_path / "plain", _workload(kind, POD), component="container"))
    native = render(_kustomization(tmp_path / "native", _workload(kind, POD)))
    (pod,), (other,) = pods(resources), pods(native)

    assert [container["name"] for container in pod["containers"]] == ["main", "lora-sidecar"]
    assert "initContainers" not in pod
    sidecar = named(other["initContainers"], "lora-sidecar")
    assert sidecar.pop("restartPolicy") == "Always"
    assert named(pod["containers"], "lora-sidecar") == sidecar
    validate(of_kind(resources, kind), VERSIONS[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("labels", [{}, {"lora-sidecar/inject": "false"}])
def test_without_the_label(tmp_path: Path, kind: str, labels: dict[str, str]) -> None:
    """A workload that does not ask for the sidecar is left as it is."""
    other = _workload(kind, POD, labels, name="other")

    resources = render(_kustomization(tmp_path, other))

    assert of_kind(resources, kind) == other


def test_many_workloads(tmp_path: Path) -> None:
    """Each workload with the label gets a sidecar of its own, whatever its kind."""
    workloads = [_workload(kind, POD, name=kind.lower()) for kind in KINDS]

    rendered = list(pods(render(_kustomization(tmp_path, *workloads))))

    assert len(rendered) == 3
    assert all(named(pod["initContainers"], "lora-sidecar") for pod in rendered)


@pytest.mark.parametrize("kind", KINDS)
def test_names_images_and_config_of_ones_own(tmp_path: Path, kind: str) -> None:
    """A name prefix reaches the reference to the ConfigMap, the image is replaced, and so is the config."""
    config = "servers:\n  - name: other\n    url: http://127.0.0.1:9000\n"
    patch = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "lora-sidecar"},
        "data": {"sidecar.yaml": config},
    }
    folder = _kustomization(
        tmp_path,
        _workload(kind, POD),
        namePrefix="team-",
        namespace="models",
        images=[{"name": "lora-sidecar", "newName": "registry.example.com/lora-sidecar", "newTag": "1"}],
        patches=[{"patch": yaml.safe_dump(patch)}],
    )

    resources = render(folder)

    found = of_kind(resources, "ConfigMap")
    assert found["metadata"] == {"name": "team-lora-sidecar", "namespace": "models"}
    assert found["data"] == {"sidecar.yaml": config}
    (pod,) = pods(resources)
    assert named(pod["volumes"], "lora-sidecar-config")["configMap"]["name"] == "team-lora-sidecar"
    assert named(pod["initContainers"], "lora-sidecar")["image"] == "registry.example.com/lora-sidecar:1"


def test_an_api_key(tmp_path: Path) -> None:
    """The patch of docs/kubernetes.md mounts the key's Secret into the sidecar, and leaves the rest of it."""
    document = (ROOT / "docs/kubernetes.md").read_text()
    block = next(block for block in document.split("```yaml\n")[1:] if "vllm-api-key" in block).split("```")[0]

    (pod,) = pods(render(_kustomization(tmp_path, _workload("Deployment", POD), **yaml.safe_load(block))))

    sidecar = named(pod["initContainers"], "lora-sidecar")
    assert [mount["mountPath"] for mount in sidecar["volumeMounts"]] == [
        "/var/run/secrets/vllm",
        "/etc/lora-sidecar",
        "/var/lib/lora-sidecar",
    ]
    assert sidecar["livenessProbe"]
    assert named(pod["volumes"], "vllm-api-key") == {"name": "vllm-api-key", "secret": {"secretName": "vllm-api-key"}}
    assert len(pod["volumes"]) == 3


def test_a_label_from_outside(tmp_path: Path) -> None:
    """A workload that cannot be edited gets its label from a component that comes first, as docs/kubernetes.md says."""
    document = (ROOT / "docs/kubernetes.md").read_text()
    block = next(block for block in document.split("```yaml\n")[1:] if "kind: Component" in block).split("```")[0]
    (tmp_path / "label").mkdir()
    (tmp_path / "label/kustomization.yaml").write_text(block)
    folder = _kustomization(tmp_path, _workload("Deployment", POD, {"team": "models"}, name="vllm"))
    text = yaml.safe_load((folder / "kustomization.yaml").read_text())
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(text | {"components": ["label", *text["components"]]}))

    resources = render(folder)

    (pod,) = pods(resources)
    assert named(pod["initContainers"], "lora-sidecar")
    assert of_kind(resources, "Deployment")["metadata"]["labels"] == {"team": "models"} | LABEL


def test_a_leader_without_a_template_of_its_own(tmp_path: Path) -> None:
    """A LeaderWorkerSet whose leader is like its workers is refused: the result would be a leader without vLLM."""
    workload = _workload("LeaderWorkerSet", POD)
    del workload["spec"]["leaderWorkerTemplate"]["leaderTemplate"]

    assert "leaderTemplate" in refusal(_kustomization(tmp_path, workload))


STARTUP = {"httpGet": {"path": "/health", "port": 8000}, "periodSeconds": 10, "failureThreshold": 180}


@pytest.mark.parametrize("component", ["sidecar", "container"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_probe_that_ends_a_wedged_server(tmp_path: Path, kind: str, component: str) -> None:
    """The server's container gets the probe of docs/server-health.md in the place of its own, and keeps the rest."""
    container = {"name": "main", "image": "vllm", "startupProbe": STARTUP, "livenessProbe": STARTUP}
    workload = _workload(kind, {"containers": [container, {"name": "other", "image": "other"}]})

    resources = render(_kustomization(tmp_path, workload, component=component, besides=("server-liveness",)))

    validate(of_kind(resources, kind), VERSIONS[0])
    (pod,) = pods(resources)
    document = (ROOT / "docs/server-health.md").read_text()
    block = next(block for block in document.split("```yaml\n")[1:] if "serverz" in block).split("```")[0]
    assert pod["containers"][0] == container | {"livenessProbe": yaml.safe_load(block)["livenessProbe"]}
    assert "livenessProbe" not in named(pod["containers"], "other")
    sidecar = named(pod["initContainers" if "initContainers" in pod else "containers"], "lora-sidecar")
    assert sidecar["livenessProbe"]["httpGet"]["path"] == "/livez"


@pytest.mark.parametrize("kind", KINDS)
def test_a_probe_without_time_to_start(tmp_path: Path, kind: str) -> None:
    """A container without a startupProbe is refused: it would be ended for starting."""
    assert "startupProbe" in refusal(_kustomization(tmp_path, _workload(kind, POD), besides=("server-liveness",)))
