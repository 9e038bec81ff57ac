"""Renders config/kubernetes as a cluster would get it, and holds the result against the schemas of Kubernetes.

The trap guarded against is a schema that lets everything through: the strict schemas refuse unknown fields.
Kinds of others (LeaderWorkerSet, PodMonitor) are held against what stands here or a pod's own schema, never skipped.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.support.paths import ROOT

MANIFESTS = ROOT / "config/kubernetes"
VERSIONS: Final = ("1.29", "1.37")
"""The oldest Kubernetes with native sidecars switched on, and the newest whose schemas are at hand."""

Resource = dict[str, Any]
_NEEDED = "these tests need kubectl 1.27 or later, or kustomize 5 or later, on the PATH"

_POD_MONITOR: Final = {
    # The fields of PodMonitor that are used here, from prometheus-operator's monitoring.coreos.com/v1.
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "additionalProperties": False,
    "properties": {
        "apiVersion": {"const": "monitoring.coreos.com/v1"},
        "kind": {"const": "PodMonitor"},
        "metadata": {"type": "object"},
        "spec": {
            "type": "object",
            "required": ["selector", "podMetricsEndpoints"],
            "additionalProperties": False,
            "properties": {
                "selector": {"type": "object"},
                "podMetricsEndpoints": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {
                            "port": {"type": "string"},
                            "path": {"type": "string"},
                            "interval": {"type": "string", "pattern": "^[0-9]+(ms|s|m|h)$"},
                        },
                    },
                },
            },
        },
    },
}


def render(folder: Path) -> list[Resource]:
    """What kustomize makes of a folder. Fails the test with kustomize's own words where it refuses."""
    done = _kustomize(folder)
    if done.returncode:
        pytest.fail(f"render {folder}: {done.stderr}")
    return [resource for resource in yaml.safe_load_all(done.stdout) if resource]


def refusal(folder: Path) -> str:
    """What kustomize says of a folder that it must refuse."""
    done = _kustomize(folder)
    assert done.returncode != 0, done.stdout
    return done.stderr


def _kustomize(folder: Path) -> subprocess.CompletedProcess[str]:
    for command in (["kubectl", "kustomize"], ["kustomize", "build"]):
        if shutil.which(command[0]):
            return subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False, timeout=30)
    pytest.fail(_NEEDED)


def read(file: Path) -> list[Resource]:
    """The resources of a plain file."""
    return [resource for resource in yaml.safe_load_all(file.read_text()) if resource]


def validate(resource: Resource, version: str) -> None:
    """Hold a resource against the strict schema of a version of Kubernetes. Raises where it does not fit."""
    match resource["kind"]:
        case "PodMonitor":
            jsonschema.validate(resource, _POD_MONITOR)
        case "LeaderWorkerSet":
            spec = resource["spec"]["leaderWorkerTemplate"]
            for template in (spec["leaderTemplate"], spec["workerTemplate"]):
                wrapped = {"apiVersion": "v1", "kind": "PodTemplate", "template": template}
                kubernetes_validate.validate(wrapped, version, strict=True)
        case _:
            kubernetes_validate.validate(resource, version, strict=True)


def of_kind(resources: list[Resource], kind: str) -> Resource:
    """The only resource of that kind."""
    (found,) = [resource for resource in resources if resource["kind"] == kind]
    return found


def pods(resources: list[Resource]) -> Iterator[Resource]:
    """The spec of every pod that the resources describe; of a LeaderWorkerSet the leader's."""
    for resource in resources:
        spec = resource.get("spec", {})
        match resource["kind"]:
            case "Pod":
                yield spec
            case "Deployment" | "StatefulSet":
                yield spec["template"]["spec"]
            case "LeaderWorkerSet":
                yield spec["leaderWorkerTemplate"]["leaderTemplate"]["spec"]
            case _:
                pass


def named(entries: list[Resource], name: str) -> Resource:
    """The only entry of that name."""
    (found,) = [entry for entry in entries if entry["name"] == name]
    return found
