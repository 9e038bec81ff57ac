"""Prometheus' own tool accepts what is exposed, the rules and the dashboard; run by `make check-ops`."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from lora_sidecar.api.metrics import Metrics
from lora_sidecar.core.events import Event, EventName, Level
from tests.support.paths import ROOT
from tests.support.snapshots import a_board

pytestmark = pytest.mark.tools


def promtool(*arguments: str, given: bytes = b"") -> str:
    """What promtool says; fails where it objects or is not there."""
    program = shutil.which("promtool")
    if program is None:
        pytest.fail("promtool is needed for this test: apt-get install prometheus")
    done = subprocess.run([program, *arguments], input=given, capture_output=True, timeout=50, check=False)
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    return said


def test_metrics_follow_the_conventions() -> None:
    """Names, units, types and help texts are as Prometheus wants them, in a process to which much has happened."""
    metrics = Metrics(("vllm",))
    beat = {"seconds": 0.01, "verdict": "steady"}
    metrics.count("vllm", [Event(EventName.HEARTBEAT_COMPLETED, Level.DEBUG, beat)])
    assert promtool("check", "metrics", given=metrics.text(a_board(hostile=True).snapshot(100.0, 30.0))) == ""


def test_rules_are_sound() -> None:
    """Prometheus would load the file as it is."""
    assert "SUCCESS" in promtool("check", "rules", str(ROOT / "config" / "alerts.yaml"))


def test_alerts_fire_when_they_should() -> None:
    """Every alert fires in its situation, with these labels and words, and not before."""
    file = ROOT / "tests" / "platform" / "prometheus" / "alerts.test.yaml"
    assert "SUCCESS" in promtool("test", "rules", str(file))
    tested = {one["alertname"] for test in yaml.safe_load(file.read_text())["tests"] for one in test["alert_rule_test"]}
    groups = yaml.safe_load((ROOT / "config" / "alerts.yaml").read_text())["groups"]
    assert tested == {rule["alert"] for group in groups for rule in group["rules"]}


def test_queries_of_the_dashboard_are_sound(tmp_path: Path) -> None:
    """Every panel's query parses."""
    panels = json.loads((ROOT / "config" / "grafana-dashboard.json").read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    assert len(queries) > 20
    plain = [re.sub(r"\$__\w+", "5m", query) for query in queries]
    rules = [{"record": f"panel:{at}", "expr": query} for at, query in enumerate(plain)]
    file = tmp_path / "panels.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", str(file))
