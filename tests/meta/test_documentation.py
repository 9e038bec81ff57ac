"""What rules, dashboard and documentation name exists, and what exists is documented."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from lora_sidecar.api.document import AdapterPage, AdapterView, Document, EventView, RecoveryView, ServerView, SpanView
from lora_sidecar.api.metrics import ADAPTER_SERIES, Metrics
from lora_sidecar.core.conditions import ConditionType
from lora_sidecar.core.events import EventName
from lora_sidecar.core.outcomes import FailureKind
from lora_sidecar.reconcile.outage import Phase
from lora_sidecar.reconcile.state import Verdict
from lora_sidecar.status.adapters import AdapterState
from lora_sidecar.status.board import Board
from tests.support.paths import ROOT

_OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
_ALERTS = ROOT / "config" / "alerts.yaml"
_DASHBOARD = ROOT / "config" / "grafana-dashboard.json"

_METRIC = re.compile(r"\b(?:lora_sidecar|process)_[a-z0-9_]+\b")


def _exposed() -> dict[str, str]:
    """Every sample's and family's name that a fresh process exposes, with its family's type."""
    text = Metrics(("vllm",)).text(Board(("vllm",)).snapshot(1.0, 30.0)).decode()
    names: dict[str, str] = {}
    for family in text_string_to_metric_families(text):
        names[family.name] = family.type
        names |= {sample.name: family.type for sample in family.samples}
    # Absent before the first good answer, since there is no age to give.
    return names | {"lora_sidecar_heartbeat_last_good_age_seconds": "gauge"}


def _rules() -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = yaml.safe_load(_ALERTS.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def _expressions(part: object) -> Iterator[str]:
    match part:
        case dict():
            for key, value in part.items():
                if key in ("expr", "query") and isinstance(value, str):
                    yield value
                yield from _expressions(value)
        case list():
            for value in part:
                yield from _expressions(value)
        case _:
            pass


def test_every_metric_of_the_alerts_exists() -> None:
    """An alert on a metric that nobody exposes never fires."""
    used = {name for rule in _rules() for name in _METRIC.findall(rule["expr"])}
    assert len(used) > 5
    assert used <= _exposed().keys()


def test_every_metric_of_the_dashboard_exists() -> None:
    """No panel stays empty because of a name."""
    used = {name for text in _expressions(json.loads(_DASHBOARD.read_text())) for name in _METRIC.findall(text)}
    assert len(used) > 15
    assert used <= _exposed().keys()


def test_labels_of_the_alerts_have_values_that_exist() -> None:
    """A state or condition that is spelt otherwise than in the code matches nothing."""
    known: dict[str, set[str]] = {
        "type": {str(one) for one in ConditionType},
        "state": {str(one) for one in AdapterState},
        "phase": {str(one) for one in Phase},
        "result": {"succeeded", *FailureKind},
        "le": {"60.0"},
    }
    texts = [rule["expr"] for rule in _rules()] + list(_expressions(json.loads(_DASHBOARD.read_text())))
    found = [pair for text in texts for pair in re.findall(r'(\w+)\s*[!=]~?"([^"$]+)"', text)]
    assert len(found) > 5
    for label, values in found:
        assert set(values.split("|")) <= known[label], (label, values)


@pytest.mark.parametrize("rule", _rules(), ids=lambda rule: rule["alert"])
def test_every_alert_has_its_runbook(rule: dict[str, Any]) -> None:
    """The address in an alert leads to a heading of its own name, with text below it."""
    assert rule["annotations"]["runbook_url"] == f"docs/operations.md#{rule['alert'].lower()}"
    section = _OPERATIONS.split(f"### {rule['alert']}\n")[1].split("\n#")[0]
    assert len(section.strip()) > 20
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"]["summary"]


def test_every_runbook_belongs_to_an_alert() -> None:
    """No heading of an alert that is gone."""
    assert set(re.findall(r"^### (Lora\w+)$", _OPERATIONS, re.MULTILINE)) == {rule["alert"] for rule in _rules()}


@pytest.mark.parametrize("kind", ConditionType)
def test_every_condition_has_its_row(kind: ConditionType) -> None:
    """Whoever sees a condition finds what to do, in one place: the operations manual."""
    assert re.search(rf"^\| `{kind}` \|", _OPERATIONS, re.MULTILINE)


@pytest.mark.parametrize("event", EventName)
def test_every_event_has_its_row(event: EventName) -> None:
    """Whoever sees an event finds what it means, in one place: the operations manual."""
    assert re.search(rf"^\| `{event}` \|", _OPERATIONS, re.MULTILINE)


def test_no_row_for_what_is_gone() -> None:
    """The manual names no event and no condition that the code does not have."""
    rows = re.findall(r"^\| `([a-z]+\.[a-z_]+)` \|", _OPERATIONS, re.MULTILINE)
    assert set(rows) == {str(event) for event in EventName}
    conditions = _OPERATIONS.split("## Conditions")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", conditions, re.MULTILINE)) == {str(kind) for kind in ConditionType}


def test_every_metric_is_documented_with_its_type() -> None:
    """The manual's table is the list of what is exposed, no more and no less."""
    documented = dict(re.findall(r"^\| `(lora_sidecar_\w+)` \| (\w+) \|", _OPERATIONS, re.MULTILINE))
    exposed: dict[str, str] = {}
    text = Metrics(("vllm",)).text(Board(("vllm",)).snapshot(1.0, 30.0)).decode()
    for family in text_string_to_metric_families(text):
        if family.name.startswith("lora_sidecar_"):
            name = family.name + ("_total" if family.type == "counter" else "")
            exposed[name] = family.type
    exposed["lora_sidecar_heartbeat_last_good_age_seconds"] = "gauge"
    assert documented == exposed


def test_values_of_labels_are_documented() -> None:
    """States, phases and verdicts stand in the manual, and so does the cap on series."""
    for value in (*AdapterState, *Phase, *Verdict, *FailureKind):
        assert f"`{value}`" in _OPERATIONS, value
    assert f"at most {ADAPTER_SERIES} adapters" in _OPERATIONS


@pytest.mark.parametrize("part", [Document, ServerView, AdapterPage, AdapterView, SpanView, RecoveryView, EventView])
def test_every_field_of_the_status_is_documented(part: type[msgspec.Struct]) -> None:
    """No field has to be guessed at."""
    section = _OPERATIONS.split("## `/status`")[1]
    for field in msgspec.structs.fields(part):
        assert re.search(rf"`(?:\w+\[\]\.)?{field.encode_name}(?:\[\])?`", section), field.encode_name
