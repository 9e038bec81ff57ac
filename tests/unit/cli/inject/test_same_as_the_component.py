from __future__ import annotations

from typing import Any

import pytest
import yaml

from lora_sidecar.cli.inject import pod
from lora_sidecar.cli.inject.servers.engine import Engine, Server
from lora_sidecar.cli.inject.settings import made_of
from tests.support.paths import ROOT
from tests.unit.cli.inject.support import IMAGE, deployment, done, of_kind, pods

PARTS = ROOT / "config/kubernetes/parts"


def component() -> dict[str, Any]:
    """What the kustomize component adds to a pod."""
    spec: dict[str, Any] = yaml.safe_load((PARTS / "pod-template.yaml").read_text())["template"]["spec"]
    return spec


@pytest.mark.parametrize("native", [True, False], ids=["native", "plain"])
def test_the_container_and_its_volumes(native: bool) -> None:
    """What is added is what the component adds, but for the names of the image and of the ConfigMap."""
    text = done(deployment("image: vllm/vllm-openai\nargs: [--enable-lora]"), native=native)

    (spec,) = pods(text)
    (theirs,) = component()["containers"]
    ours = spec["initContainers" if native else "containers"][-1]
    assert ours == theirs | {"image": IMAGE} | ({"restartPolicy": "Always"} if native else {})
    config, state = component()["volumes"]
    assert spec["volumes"] == [config | {"configMap": {"name": "model-lora-sidecar"}}, state]


def test_the_config_of_a_server_without_flags() -> None:
    """The config that is made of a server with nothing to say is the one that the component brings."""
    theirs = yaml.safe_load((PARTS / "config-map.yaml").read_text())
    (ours,) = of_kind(done(deployment("image: vllm/vllm-openai\nargs: [--enable-lora]")), "ConfigMap")

    assert yaml.safe_load(ours["data"]["sidecar.yaml"]) == yaml.safe_load(theirs["data"]["sidecar.yaml"])
    assert ours["data"].keys() == theirs["data"].keys()


def test_the_folders_of_the_image() -> None:
    """The config is mounted where the program looks for it, and the checkpoints where its config puts them."""
    settings = made_of([({}, Server(Engine.VLLM, "vllm", "http://127.0.0.1:8000"))], [])

    assert settings is not None
    assert settings.state == "/var/lib/lora-sidecar"
    assert settings.ops_port == 9400
    assert pod.CONFIG_FOLDER == "/etc/lora-sidecar"
