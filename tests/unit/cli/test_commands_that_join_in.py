from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lora_sidecar.cli.main import main
from tests.support.paths import ROOT

Captured = pytest.CaptureFixture[str]
SYNCER = "vLLMLoRAConfig:\n  ensureExist:\n    models: [{id: a, source: /a}]\n"


def test_a_manifest(capfd: Captured) -> None:
    """The whole command line knows inject, and prints manifests that say more than before."""
    assert main(["inject", str(ROOT / "examples/aibrix.yaml"), "--image", "example.com/lora-sidecar:1"]) == 0

    out, err = capfd.readouterr()
    assert [one["kind"] for one in yaml.safe_load_all(out)] == ["Deployment", "ConfigMap", "Service"]
    assert "guards vLLM in container vllm-openai" in err


def test_a_config_of_another_tool(tmp_path: Path, capsys: Captured) -> None:
    """A config of lora-syncer is refused where one of ours is due, with the command that converts it; and it does."""
    file = tmp_path / "configmap.yaml"
    file.write_text(SYNCER)

    for command in ("run", "check"):
        assert main([command, "--config", str(file)]) == 78
        assert f"`lora-sidecar config convert {file}` prints one of ours" in capsys.readouterr().err
    assert main(["config", "convert", str(file)]) == 0

    file.write_text(capsys.readouterr().out)
    assert main(["check", "--config-only", "--config", str(file)]) == 0


@pytest.mark.parametrize(
    "arguments", [("config",), ("config", "convert"), ("config", "invert", "x"), ("inject", "a", "b")]
)
def test_wrong_usage(arguments: tuple[str, ...], capsys: Captured) -> None:
    """A wrong command line of theirs is status 64 too."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)

    assert exit_.value.code == 64
    assert capsys.readouterr().err.startswith("usage: lora-sidecar")
