from __future__ import annotations

import re

import pytest

from lora_sidecar.cli.inject.manifests.documents import INJECTED
from lora_sidecar.cli.inject.servers.engine import RUNTIME_UPDATING
from tests.support.paths import ROOT

PAGE = (ROOT / "docs/inject.md").read_text()
SOURCE = "".join(path.read_text() for path in sorted((ROOT / "lora_sidecar/cli/inject").rglob("*.py")))


HELM = {"--post-renderer"}


@pytest.mark.parametrize("flag", sorted(set(re.findall(r"`(--[a-z][a-z-]*)", PAGE)) - HELM))
def test_every_flag_is_known(flag: str) -> None:
    """Each flag that the page speaks of, of the servers' or of the command's own, is one that the code knows."""
    assert f'"{flag}"' in SOURCE


def test_the_names_of_what_is_added() -> None:
    """The annotation, the variable and the ConfigMap are called what the page calls them."""
    assert f"`{INJECTED}`" in PAGE
    assert f"`{RUNTIME_UPDATING}=True`" in PAGE
    assert "`NAME-lora-sidecar`" in PAGE
    assert '-lora-sidecar"' in SOURCE
