"""The page, the table, `/status`, the metrics and `/readyz?verbose` of one process tell the same at the same moment."""

from __future__ import annotations

import html
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from lora_sidecar.cli.client import table
from tests.process.conftest import NewSidecar
from tests.support.adapters import write_adapter
from tests.support.drafts import Draft
from tests.support.http_client import Api
from tests.support.servers import RunningServer
from tests.support.sidecar import Sidecar, eventually

Truth = tuple[bool, str, dict[str, str]]
"""Ready or not, the server's phase, and the state of each adapter."""


class _Table(HTMLParser):
    """The rows of the page's table of adapters, and its tags."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[str] = []
        self._cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "tr":
            self.rows.append([])
        self._cell = tag == "bdi" or (tag == "span" and (given.get("class") or "").startswith("tag "))
        if self._cell and self.rows:
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self._cell:
            if self.rows:
                self.rows[-1][-1] += data
            else:
                self.tags.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._cell = False
        if tag == "table":
            self.rows, self._done = [], self.rows  # what follows is no row of it


def _of_status(told: dict[str, Any]) -> Truth:
    (server,) = told["servers"]
    states = {one["name"]: one["state"] for one in told["adapters"]["items"]}
    assert {state: list(states.values()).count(state) for state in server["adapters"]} == server["adapters"]
    return told["ready"], server["phase"], states


def _of_metrics(text: str) -> Truth:
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    by_name = {sample.name: sample.value for sample in samples}
    phase = {s.labels["phase"]: s.value for s in samples if s.name == "lora_sidecar_server_phase"}
    (held,) = [name for name, value in phase.items() if value == 1]
    assert by_name["lora_sidecar_server_up"] == (held == "up")
    states: dict[str, str] = {}
    for sample in samples:
        if sample.name == "lora_sidecar_adapter_state" and sample.value == 1:
            assert states.setdefault(sample.labels["adapter"], sample.labels["state"]) == sample.labels["state"]
    return by_name["lora_sidecar_ready"] == 1, held, states


def _of_readiness(status: int, text: str) -> Truth:
    phase = re.search(r"^server vllm: (\w+)", text, re.MULTILINE)
    assert phase is not None
    states = dict(re.findall(r"^adapter (\S+) \([^)]*\): (\w+)", text, re.MULTILINE))
    return status == 200, phase[1], states


def _of_page(text: str) -> Truth:
    reader = _Table()
    reader.feed(text)
    ready, phase = [tag for tag in reader.tags if tag in ("ready", "not ready", "up", "down", "unknown", "starting")][
        :2
    ]
    rows = [row for row in reader._done if row]
    return ready == "ready", phase, {row[1]: row[0] for row in rows}


def _of_table(text: str) -> Truth:
    """The command line's table does not say whether all is ready: a required adapter that is not listed says so."""
    lines = text.splitlines()
    phase = re.match(r"vllm: (\w+) for", lines[0])
    header = next(at for at, line in enumerate(lines) if line.split()[:2] == ["NAME", "STATE"])
    rows = [line.split() for line in lines[header + 1 :]]
    assert phase is not None
    ready = all(state == "listed" for name, state, *_ in rows if name.endswith("*"))
    return ready, phase[1], {name.rstrip("*"): state for name, state, *_ in rows}


async def _truths(sidecar: Sidecar, session: aiohttp.ClientSession) -> list[Truth] | None:
    """What each of the five tells, None where something was published while they were asked."""
    before = (await sidecar.get("/status")).json()
    page = await sidecar.get("/")
    metrics = await sidecar.get("/metrics")
    readiness = await sidecar.get("/readyz?verbose")
    control = (await Api(session, await sidecar.control_url()).get("/v1/adapters")).json()
    after = (await sidecar.get("/status")).json()
    if before["revision"] != after["revision"]:
        return None
    return [
        _of_status(before),
        _of_page(page.text),
        _of_metrics(metrics.text),
        _of_readiness(readiness.status, readiness.text),
        _of_table(table(control, datetime.now(UTC), None)),
    ]


async def test_all_faces_agree_through_an_outage(
    new_sidecar: NewSidecar,
    vllm: RunningServer,
    api: Api,
    session: aiohttp.ClientSession,
    declared: list[dict[str, Any]],
) -> None:
    """Before, during and after an outage, and while an adapter fails, all five say one thing, and it is true."""
    slow = {"interval": "400ms", "away_interval": "400ms"}
    sidecar = new_sidecar(vllm.url, declared, heartbeat=slow)
    await sidecar.start()

    async def agreed(phase: str, states: set[str]) -> Truth:
        async def look() -> Truth | None:
            truths = await _truths(sidecar, session)
            if truths is None:
                return None
            assert all(one == truths[0] for one in truths), truths
            _, held, found = truths[0]
            return truths[0] if held == phase and set(found.values()) == states else None

        found = await eventually(look, f"all faces say {phase} and {states}")
        assert found is not None
        return found

    assert (await agreed("up", {"listed"}))[0] is True
    await api.load("learned", "/adapters/learned")
    await sidecar.event("adapter.adopted")
    await vllm.sigkill_all()
    ready, _, states = await agreed("down", {"unknown"})
    assert not ready
    assert states.keys() == {"one", "two", "three", "learned"}
    vllm.start()
    await vllm.until_ready()
    ready, _, states = await agreed("up", {"listed"})
    assert ready
    assert states.keys() == {"one", "two", "three", "learned"}

    told = (await sidecar.get("/status")).json()
    phases = [span["phase"] for span in told["servers"][0]["timeline"]]
    assert phases[-3:] == ["up", "down", "up"]
    recovery = told["servers"][0]["recoveries"][-1]
    assert (recovery["lost"], recovery["restored"], recovery["failed"]) == (4, 4, 0)
    samples = dict(
        re.findall(r"^(lora_sidecar_\w+){server=\"vllm\"} (\S+)$", (await sidecar.get("/metrics")).text, re.MULTILINE)
    )
    assert float(samples["lora_sidecar_outages_total"]) == 1
    assert float(samples["lora_sidecar_outage_duration_seconds_count"]) == 1
    assert float(samples["lora_sidecar_server_incarnation"]) == told["servers"][0]["incarnation"]
    assert float(samples["lora_sidecar_checkpoint_generation"]) == told["servers"][0]["checkpoint_generation"]


async def test_all_faces_give_one_reason(
    new_sidecar: NewSidecar, vllm: RunningServer, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """Parked before it was sent, withdrawn, held by a pause: each face has state and reason in the same words."""
    good = write_adapter(tmp_path / "good", layers=1)
    bad = Draft().as_torch("adapter_model.bin").write(tmp_path / "bad")
    declared = [{"name": "good", "path": str(good)}, {"name": "bad", "path": str(bad)}]
    sidecar = new_sidecar(vllm.url, declared)
    await sidecar.start()
    await sidecar.event("restore.succeeded", adapter="good")
    control = Api(session, await sidecar.control_url())

    async def agreed(name: str, state: str, reason: str) -> None:
        async def look() -> bool:
            items = (await sidecar.get("/status")).json()["adapters"]["items"]
            one = next(item for item in items if item["name"] == name)
            if one["state"] != state or reason not in one["reason"]:
                return False
            page = await sidecar.get("/")
            readiness = await sidecar.get("/readyz?verbose")
            shown = (await control.get("/v1/adapters")).json()
            told = next(item for item in shown["adapters"] if item["name"] == name)
            assert {**told, "since": None} == {**one, "since": None}  # a date is right to some milliseconds
            line = next(line for line in table(shown, datetime.now(UTC), None).splitlines() if line.split()[0] == name)
            assert line.endswith(one["reason"])
            assert f">{state}</span>" in page.text
            assert html.escape(one["reason"]) in page.text
            found = re.search(rf"^adapter {name} \([^)]*\): (.*)$", readiness.text, re.MULTILINE)
            assert found is not None
            assert found[1] == f"{state}: {one['reason']}"
            return True

        await eventually(look, f"{name} is {state}: {reason}")

    await agreed("bad", "parked", "preflight, not sent: ")
    await control.ask("POST", "/v1/unload_lora_adapter", body={"lora_name": "good"})
    await agreed("good", "withdrawn", "unloaded by request")
    await control.ask("POST", "/v1/pause", body={"reason": "<b>maintenance</b>"})
    await agreed("bad", "held", "paused: <b>maintenance</b>")


async def test_unchanged_page_costs_nothing(sidecar: Sidecar) -> None:
    """A page that nobody closes is answered by its tag; another query or window is refused where it makes no sense."""
    await sidecar.answers("/readyz", 200)
    page = await sidecar.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "script-src 'sha256-" in page.headers["content-security-policy"]

    async def unchanged() -> bool:
        tag = (await sidecar.get("/")).headers["etag"]
        async with aiohttp.ClientSession() as session:
            again = await Api(session, await sidecar.ops_url()).ask("GET", "/", headers={"If-None-Match": tag})
        assert again.status == 200 or again.text == ""
        return again.status == 304

    await eventually(unchanged, "a page that did not change is answered by 304")
    assert (await sidecar.get("/?state=nonsense")).status == 400
    assert (await sidecar.get("/?window=1y")).status == 400
    assert (await sidecar.get("/status?limit=0")).status == 400
    assert (await sidecar.get("/?q=%3Cscript%3E&server=vllm&window=1h")).status == 200
