from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from tests.support.kube_api import RealKube, real_folder
from tests.unit.cli.inject.support import EXAMPLES, done, injected, objects, pods, removed

pytestmark = [pytest.mark.kube, pytest.mark.asyncio(loop_scope="module")]
__test__ = real_folder() is not None  # the fake knows ConfigMaps alone

# The server is older than native sidecars, which llm-d's own manifest has, and knows no kind of KServe's.
TAKEN = {path.name: path.read_text() for path in EXAMPLES if path.name not in {"kserve.yaml", "llm-d.yaml"}}

Kubectl = Callable[..., Awaitable[str]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kubectl(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Kubectl]:
    """Runs kubectl against a server, with a text on stdin; where it fails, the test fails with its words."""
    folder = real_folder()
    assert folder is not None
    home = tmp_path_factory.mktemp("kubectl")
    kube = RealKube(folder, home / "state")

    async def run(*arguments: str, text: str = "") -> str:
        certificate = home / "ca.pem"
        certificate.write_text(kube.ca)
        process = await asyncio.create_subprocess_exec(
            "kubectl",
            *("--kubeconfig", "/dev/null", "--server", kube.url, "--token", kube.admin_token),
            *("--certificate-authority", str(certificate), *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await process.communicate(text.encode())
        assert process.returncode == 0, out.decode()
        return out.decode()

    try:
        await kube.start()
        await run("create", "namespace", "serving")
        yield run
    finally:
        await kube.stop()


@pytest.mark.parametrize("name", TAKEN)
async def test_a_real_server_takes_it(kubectl: Kubectl, name: str) -> None:
    """A real API server takes every document of an example with a plain sidecar."""
    text = done(TAKEN[name], native=False)

    answer = await kubectl("apply", "--dry-run=server", "-f", "-", text=text)

    assert answer.count("created (server dry run)") == len(objects(text))


async def test_through_a_cluster_and_back(kubectl: Kubectl) -> None:
    """What a server gives back has another text: a second run leaves it alone, and the sidecar comes out of it."""
    await kubectl("apply", "-f", "-", text=done(TAKEN["deployment.yaml"], native=False))

    applied = await kubectl("get", "deployment,configmap,service", "--selector", "!component", "-o", "yaml")
    assert injected(applied, native=False).text == applied
    back = removed(applied)

    assert not back.refused
    assert pods(applied)
    assert not pods(back.text)
    assert "lora-sidecar" not in str([one["spec"] for one in objects(back.text)])
    answer = await kubectl("apply", "-f", "-", text=back.text)
    assert "deployment.apps/mistral configured" in answer
    assert "lora-sidecar" not in await kubectl("get", "deployment", "mistral", "-o", "jsonpath={.spec}")
