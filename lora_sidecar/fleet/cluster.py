"""How a pod reaches its cluster's API: the address from the environment, and token, CA and namespace from files.

The trap guarded against is a token that was read once: the kubelet replaces the projected one before its hour is over
(and the CA when the cluster's is rotated), so the files are read for each request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Struct

FOLDER: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
"""Where Kubernetes puts a pod's credentials; the manifests project the token to the same place."""

_CAP: Final = 1024 * 1024


class Cluster(Struct, frozen=True):
    """Where the API is, and the folder with `token`, `ca.crt` and `namespace`; `ca.crt` only counts for https."""

    url: str
    folder: str = FOLDER


class NotInCluster(Struct, frozen=True):
    """The process does not run in a pod; `detail` says what is missing."""

    detail: str


class Credentials(Struct, frozen=True):
    """What the files hold; `ca` is PEM text, empty where none is needed."""

    token: str
    namespace: str
    ca: str


def in_cluster(environment: Mapping[str, str], folder: str = FOLDER) -> Cluster | NotInCluster:
    """The API of the cluster that this pod runs in, by the variables that the kubelet sets."""
    host, port = (environment.get(f"KUBERNETES_SERVICE_{name}", "") for name in ("HOST", "PORT"))
    if not host or not port:
        return NotInCluster("KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set")
    return Cluster(f"https://{f'[{host}]' if ':' in host else host}:{port}", folder)


def read_credentials(cluster: Cluster) -> Credentials:
    """Read the files; it blocks. Raises `OSError`, and `ValueError` where a file cannot be what it should."""
    token, namespace = (_line(f"{cluster.folder}/{name}") for name in ("token", "namespace"))
    ca = _text(f"{cluster.folder}/ca.crt") if cluster.url.startswith("https://") else ""
    return Credentials(token, namespace, ca)


def _line(path: str) -> str:
    text = _text(path).strip()
    if not text or not text.isprintable():
        raise ValueError(f"{path} is empty, or has more than one line")
    return text


def _text(path: str) -> str:
    # pathlib interns the parts of a path, anew at each request.
    with open(path, "rb") as file:  # noqa: PTH123
        data = file.read(_CAP + 1)
    if len(data) > _CAP:
        raise ValueError(f"{path} has more than {_CAP} bytes")
    return data.decode("ascii")
