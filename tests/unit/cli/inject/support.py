"""Manifests for these tests, and what becomes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lora_sidecar.cli.inject.injection import inject
from lora_sidecar.cli.inject.outcome import Outcome
from lora_sidecar.cli.inject.removal import remove
from lora_sidecar.cli.inject.settings import Given
from lora_sidecar.cli.inject.workload import Options
from lora_sidecar.config.load import parse
from tests.support.paths import ROOT

IMAGE = "example.com/lora-sidecar:1"
EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.yaml") if path.name != "compose.yaml")
MANIFESTS = sorted((Path(__file__).parent / "manifests").iterdir())

Object = dict[str, Any]


def deployment(container: str, *, spec: str = "", kind: str = "Deployment") -> str:
    """A manifest with one container, of which the lines are given, and with further lines of the pod's spec."""
    lines = "".join(f"          {line}\n" for line in container.strip("\n").split("\n"))
    more = "".join(f"      {line}\n" for line in spec.strip("\n").split("\n")) if spec else ""
    return (
        f"apiVersion: {'batch/v1' if kind == 'Job' else 'apps/v1'}\nkind: {kind}\nmetadata:\n  name: model\nspec:\n"
        f"  template:\n    spec:\n      containers:\n        - name: vllm\n{lines}{more}"
    )


def given(config: str) -> Given:
    """A config that somebody gives."""
    return Given(config, parse(config.encode(), "given"))


def injected(text: str, **options: Any) -> Outcome:
    """What becomes of a manifest."""
    (outcome,) = inject([text], Options(image=IMAGE, **options))
    return outcome


def done(text: str, **options: Any) -> str:
    """The manifest with sidecars, where nothing is refused."""
    outcome = injected(text, **options)
    assert not outcome.refused, [str(one) for one in outcome.said]
    assert outcome.text != text
    return outcome.text


def removed(text: str) -> Outcome:
    """What becomes of a manifest when sidecars are taken out."""
    (outcome,) = remove([text])
    return outcome


def refusal(text: str, **options: Any) -> str:
    """Why a manifest is refused, with its line; it is left as it is."""
    outcome = injected(text, **options)
    assert outcome.text == text
    (one,) = [one for one in outcome.said if one.refused]
    return f"{one.line}: {one}"


def notes(text: str, **options: Any) -> list[str]:
    """What is said of a manifest that is not refused, but for what is guarded."""
    outcome = injected(text, **options)
    assert not outcome.refused, [str(one) for one in outcome.said]
    return [f"{one.line}: {one}" for one in outcome.said if " guards " not in f"{one}"]


def objects(text: str) -> list[Object]:
    """The objects of a stream, those of lists too."""
    found: list[Object] = []
    for one in yaml.safe_load_all(text):
        if one:
            found += one["items"] if one["kind"] == "List" else [one]
    return found


def of_kind(text: str, kind: str) -> list[Object]:
    """The objects of a kind."""
    return [one for one in objects(text) if one["kind"] == kind]


def pods(text: str) -> list[Object]:
    """The specs of pods that have a sidecar."""
    found = []
    for one in objects(text):
        spec = one.get("spec", {})
        for candidate in (
            spec,
            spec.get("template", {}).get("spec", {}) if isinstance(spec.get("template"), dict) else {},
            spec.get("template", {}) if isinstance(spec.get("template"), dict) else {},
            spec.get("leaderWorkerTemplate", {}).get("leaderTemplate", {}).get("spec", {}),
        ):
            listed = [*candidate.get("initContainers", []), *candidate.get("containers", [])]
            if any(item["name"] == "lora-sidecar" for item in listed):
                found.append(candidate)
    return found


def config_of(text: str) -> Object:
    """What the only config says that was added."""
    (made,) = [one for one in of_kind(text, "ConfigMap") if one["metadata"]["name"].endswith("lora-sidecar")]
    parse(made["data"]["sidecar.yaml"].encode(), "made")
    config: Object = yaml.safe_load(made["data"]["sidecar.yaml"])
    return config
