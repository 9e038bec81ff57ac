from __future__ import annotations

from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from lora_sidecar.config.load import parse
from tests.platform.kubernetes.rendering import MANIFESTS, VERSIONS, Resource, named, of_kind, pods, render, validate
from tests.support.paths import ROOT
from tests.unit.cli.inject.support import EXAMPLES, done, objects
from tests.unit.cli.inject.support import MANIFESTS as OTHERS

ALL = [*EXAMPLES, *OTHERS]
NAMES = [path.name for path in ALL]


def fits(resource: Resource, version: str) -> None:
    """Hold a resource against the strict schemas. Raises where it does not fit."""
    if resource["kind"] == "LLMInferenceService":
        # KServe's kind is not at hand: of what it says only the pod is Kubernetes' own.
        template = {"spec": resource["spec"]["template"]}
        wrapped = {"apiVersion": "v1", "kind": "PodTemplate", "template": template}
        kubernetes_validate.validate(wrapped, version, strict=True)
    else:
        validate(resource, version)


def pod_of(resource: Resource) -> Resource:
    """The only pod that a resource describes, its sidecar included."""
    if resource["kind"] == "LLMInferenceService":
        template: Resource = resource["spec"]["template"]
        return template
    return next(pods([resource]))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("native", [True, False], ids=["native", "plain"])
@pytest.mark.parametrize("path", ALL, ids=NAMES)
def test_the_api_server_would_take_it(path: Path, native: bool, version: str) -> None:
    """What was injected fits the strict schemas of the oldest and the newest Kubernetes, every document of it."""
    resources = objects(done(path.read_text(), native=native))

    assert any(resource["kind"] == "ConfigMap" for resource in resources)
    for resource in resources:
        fits(resource, version)


@pytest.mark.parametrize("path", ALL, ids=NAMES)
def test_a_misspelt_field(path: Path) -> None:
    """A misspelt field of the sidecar is refused, wherever the pod lies: the validation is no formality."""
    for resource in objects(done(path.read_text())):
        if "lora-sidecar/injected" in resource["metadata"].get("annotations", {}) and resource["kind"] != "ConfigMap":
            named(pod_of(resource)["initContainers"], "lora-sidecar")["restartPolice"] = "Always"
            with pytest.raises(jsonschema.ValidationError):
                fits(resource, VERSIONS[-1])


@pytest.mark.parametrize("example", ["deployment", "statefulset", "leaderworkerset"])
@pytest.mark.parametrize("component", ["sidecar", "container"])
def test_the_same_pod_as_with_kustomize(tmp_path: Path, example: str, component: str) -> None:
    """What inject makes of a manifest is the pod that the kustomize component makes, but for one name."""
    source = MANIFESTS / "examples" / example / "vllm.yaml"
    (tmp_path / "vllm.yaml").write_text(source.read_text())
    (tmp_path / "kubernetes").symlink_to(MANIFESTS)
    (tmp_path / "kustomization.yaml").write_text(
        yaml.safe_dump(
            {
                "resources": ["vllm.yaml"],
                "components": [f"kubernetes/{component}"],
                "images": [{"name": "lora-sidecar", "newName": "example.com/lora-sidecar", "newTag": "1"}],
            }
        )
    )

    (theirs,) = pods(render(tmp_path))
    (ours,) = pods(objects(done(source.read_text(), native=component == "sidecar")))

    named(theirs["volumes"], "lora-sidecar-config")["configMap"]["name"] = "vllm-lora-sidecar"
    assert ours == theirs


def test_an_example_for_docker_compose() -> None:
    """The example without Kubernetes has the sidecar in the server's network, with a config that is sound."""
    example = yaml.safe_load((ROOT / "examples/compose.yaml").read_text())
    server, sidecar = example["services"]["vllm"], example["services"]["lora-sidecar"]

    config = parse(example["configs"]["sidecar"]["content"].encode(), "compose.yaml")
    assert sidecar["network_mode"] == "service:vllm"
    assert config.servers[0].url == "http://127.0.0.1:8000"
    assert "8000:8000" in server["ports"]
    assert server["environment"] == {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
    assert [volume for volume in server["volumes"] if "adapters" in volume] == sidecar["volumes"][:1]
    assert sidecar["volumes"][1].endswith(f":{config.checkpoint.directory}")


def test_every_example_has_its_row() -> None:
    """The examples' README tells of each example, and of no other."""
    readme = (ROOT / "examples/README.md").read_text()

    assert {path.name for path in (ROOT / "examples").glob("*.yaml")} == {
        line.split("`")[1] for line in readme.splitlines() if line.startswith("| [`")
    }
    assert of_kind(objects(done((ROOT / "examples/deployment.yaml").read_text())), "ConfigMap")
