"""What is added to a pod's spec: the sidecar's container, its volumes, and the objects that they refer to.

The trap guarded against is a second truth: `config/kubernetes/parts` adds the same by kustomize, and a test holds the
two against each other.
"""

from __future__ import annotations

from typing import Final

from lora_sidecar.cli.inject.manifests.documents import INJECTED
from lora_sidecar.cli.inject.manifests.value import Value
from lora_sidecar.cli.inject.settings import SecretMount, Settings

SIDECAR: Final = "lora-sidecar"
CONFIG_VOLUME: Final = "lora-sidecar-config"
STATE_VOLUME: Final = "lora-sidecar-state"
CONFIG_FOLDER: Final = "/etc/lora-sidecar"

_USER: Final = 65532


def container(image: str, settings: Settings, *, native: bool) -> dict[str, Value]:
    """Return the sidecar's container; a `native` one is to stand among the init containers (Kubernetes 1.29)."""
    return {
        "name": SIDECAR,
        **({"restartPolicy": "Always"} if native else {}),
        "image": image,
        "ports": [{"name": SIDECAR, "containerPort": settings.ops_port}],
        "livenessProbe": {"httpGet": {"path": "/livez", "port": SIDECAR}, "periodSeconds": 10, "timeoutSeconds": 5},
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": SIDECAR}, "periodSeconds": 5, "timeoutSeconds": 5},
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}},
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [
            {"name": CONFIG_VOLUME, "mountPath": CONFIG_FOLDER, "readOnly": True},
            {"name": STATE_VOLUME, "mountPath": settings.state},
            *(_mount(one.volume, one.folder) for one in settings.secret_mounts),
            *(_mount(one.volume, one.path, one.sub_path) for one in settings.shared_mounts),
        ],
    }


def volumes(settings: Settings, name: str) -> list[Value]:
    """Return the volumes that the pod needs for it; `name` is that of the objects that are added for the pod."""
    return [
        {"name": CONFIG_VOLUME, "configMap": {"name": name}},
        {"name": STATE_VOLUME, "emptyDir": {}},
        *(_secret(one, name) for one in settings.secret_mounts),
    ]


def objects(settings: Settings, name: str, namespace: str | None, owner: str) -> list[dict[str, Value]]:
    """Return what the volumes refer to: a ConfigMap, and a Secret of what was written out. `owner` is recorded."""
    # The text comes before the last key: a block of text that ends a document takes in what follows it.
    metadata: dict[str, Value] = {
        "name": name,
        **({"namespace": namespace} if namespace else {}),
        "annotations": {INJECTED: owner},
    }
    found: list[dict[str, Value]] = [
        {"apiVersion": "v1", "data": {"sidecar.yaml": settings.text}, "kind": "ConfigMap", "metadata": metadata}
    ]
    if settings.secrets:
        found.append(
            {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": {**dict(settings.secrets)}}
        )
    return found


def _mount(volume: str, path: str, sub_path: str | None = None) -> dict[str, Value]:
    mount: dict[str, Value] = {"name": volume, "mountPath": path, "readOnly": True}
    return mount | ({"subPath": sub_path} if sub_path else {})


def _secret(mount: SecretMount, name: str) -> dict[str, Value]:
    items: list[Value] = [{"key": key, "path": file} for key, file in mount.items]
    return {"name": mount.volume, "secret": {"secretName": mount.secret or name, "items": items}}
