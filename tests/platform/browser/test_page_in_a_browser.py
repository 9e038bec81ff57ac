"""The page as people see it: on a phone, at night, without a script, through an outage, with names made to break it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.platform.browser.conftest import Keep
from tests.process.conftest import NewSidecar
from tests.support.browser import Browser, Tab
from tests.support.http_client import Api
from tests.support.servers import RunningServer
from tests.support.sidecar import Sidecar

pytestmark = pytest.mark.tools

_ADAPTERS: list[dict[str, Any]] = [
    {"name": "sql-assistant", "path": "/adapters/sql-assistant", "required": True, "priority": 10},
    {"name": "support-de", "path": "/adapters/support-de"},
]
_HOSTILE = (
    "<script>document.title='owned'</script>",
    "\"><img src=x onerror=document.title='owned'>",
    "\u05e9\u05dc\u05d5\u05dd-\u0645\u0631\u062d\u0628\u0627",
    "x" * 256,
    "rtl\u202egnp.exe\nline",
    "y" * 200_000,
)
_WIDER = "document.documentElement.scrollWidth > document.documentElement.clientWidth"


async def _ready(new_sidecar: NewSidecar, vllm: RunningServer) -> tuple[Sidecar, str]:
    sidecar = new_sidecar(vllm.url, _ADAPTERS)
    await sidecar.start()
    await sidecar.answers("/readyz", 200)
    return sidecar, await sidecar.ops_url()


def _quiet(tab: Tab, url: str) -> None:
    """Nothing was refused by the policy or failed, and nothing was asked for elsewhere."""
    assert tab.complaints == []
    assert [one for one in tab.asked if not one.startswith((url, "data:"))] == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200], ids=["phone", "desktop"])
async def test_page_fits_and_can_be_read(
    browser: Browser, keep: Keep, new_sidecar: NewSidecar, vllm: RunningServer, *, width: int, dark: bool
) -> None:
    """Nothing sticks out at the side, everything is there, and text stands out from its ground."""
    _, url = await _ready(new_sidecar, vllm)
    tab = await browser.tab(width, 800, dark=dark)
    await tab.open(f"{url}/")
    text = await tab.text()
    for part in ("All 2 adapters are listed", "sql-assistant", "/adapters/support-de", "required", "Last events", "up"):
        assert part in text
    assert not await tab.value(_WIDER)
    assert await tab.value(_CONTRAST) >= 4.5
    await keep(tab, f"{'phone' if width < 600 else 'desktop'}-{'dark' if dark else 'light'}")
    _quiet(tab, url)


_CONTRAST = """(() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = numbers(colour).map((c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (el) => {
    for (; el; el = el.parentElement) {
      const colour = getComputedStyle(el).backgroundColor;
      if (!/, 0\\)$/.test(colour)) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  return Math.min(...[...document.querySelectorAll("h1, h2, p, td, th, dt, dd, li span, .tag, a, time, .soft")]
    .filter((el) => el.checkVisibility() && el.textContent.trim() && !el.matches(".sign"))
    .map((el) => [light(getComputedStyle(el).color), light(ground(el))].sort((a, b) => b - a))
    .map(([high, low]) => (high + 0.05) / (low + 0.05)));
})()"""


async def test_page_follows_an_outage_by_itself(
    browser: Browser, keep: Keep, new_sidecar: NewSidecar, vllm: RunningServer
) -> None:
    """It shows the outage and the recovery without being loaded again, and keeps what a person opened and typed."""
    sidecar, url = await _ready(new_sidecar, vllm)
    tab = await browser.tab()
    await tab.open(f"{url}/")
    await tab.value("document.querySelector('details').open = true")
    await tab.value("document.querySelector('input[type=search]').focus()")
    await tab.send("Input.insertText", text="sql")
    await vllm.sigkill_all()
    await tab.until("document.querySelector('h1').innerText.includes('vllm is down')")
    assert await tab.value("document.title") == "✕ vllm is down · lora-sidecar"
    assert await tab.value("document.querySelectorAll('tbody .tag.idle').length") >= 2
    assert "not ready" in await tab.text("header")
    await keep(tab, "outage")
    vllm.start()
    await vllm.until_ready()
    await sidecar.event("recovery.completed")
    await tab.until("document.querySelector('h1').innerText.includes('All 2 adapters are listed')")
    past = await tab.text(".past")
    assert "2 of 2 adapters restored" in past
    assert "down" in past
    assert await tab.value("document.querySelector('details').open") is True
    assert await tab.value("document.activeElement.value") == "sql"
    assert await tab.value("document.querySelectorAll('svg .t-down').length") == 1
    await keep(tab, "recovered")
    _quiet(tab, url)


async def test_page_says_when_the_sidecar_is_gone(
    browser: Browser, keep: Keep, new_sidecar: NewSidecar, vllm: RunningServer
) -> None:
    """A page whose sidecar ended does not go on looking fresh, and is live again with the next one."""
    sidecar, url = await _ready(new_sidecar, vllm)
    tab = await browser.tab()
    await tab.open(f"{url}/")
    assert await tab.text("#live") == "live"
    await sidecar.kill()
    await tab.until("!document.getElementById('lost').hidden")
    assert "has not answered for" in await tab.text("#lost")
    assert await tab.text("#live") == "not live"
    await keep(tab, "lost")


async def test_page_is_whole_without_javascript(
    browser: Browser, keep: Keep, new_sidecar: NewSidecar, vllm: RunningServer
) -> None:
    """Without its script it says the same, tells its age, and filters by its form."""
    _, url = await _ready(new_sidecar, vllm)
    tab = await browser.tab(script=False)
    await tab.open(f"{url}/?q=support")
    text = await tab.text()
    assert "All 2 adapters are listed" in text
    assert "1 of 2 adapters" in text
    assert "support-de" in await tab.text("tbody")
    assert "sql-assistant" not in await tab.text("tbody")
    assert "as of" in await tab.text("header")
    assert "UTC" in await tab.text("header")
    assert await tab.value("document.querySelector('noscript meta[http-equiv=refresh]') !== null")
    await keep(tab, "no-script")
    _quiet(tab, url)


async def test_names_made_to_break_it_are_only_names(
    browser: Browser, keep: Keep, new_sidecar: NewSidecar, vllm: RunningServer, api: Api
) -> None:
    """Markup, marks of direction, line ends and 200 kB in names run nothing, load nothing and widen nothing."""
    sidecar, url = await _ready(new_sidecar, vllm)
    for name in _HOSTILE:
        assert (await api.load(name, f"/adapters/{name[:100]}")).status == 200
    await sidecar.event("condition.raised", condition="AdoptionRefused")
    for width in (360, 1200):
        tab = await browser.tab(width)
        await tab.open(f"{url}/")
        await tab.until("document.querySelectorAll('tbody tr').length === 6")
        text = await tab.text()
        assert _HOSTILE[0] in text
        assert _HOSTILE[2] in text
        assert "AdoptionRefused" in text
        assert "owned" not in await tab.value("document.title")
        assert await tab.value("document.images.length") == 0
        assert await tab.value("document.scripts.length") == 1
        assert not await tab.value(_WIDER)
        await keep(tab, f"hostile-{width}")
        _quiet(tab, url)


async def test_two_hundred_adapters_come_in_pages(
    browser: Browser, keep: Keep, new_sidecar: NewSidecar, vllm: RunningServer, api: Api
) -> None:
    """The next page is a link away, and choosing a state asks for it at once."""
    sidecar, url = await _ready(new_sidecar, vllm)
    await asyncio.gather(*(api.load(f"customer-{at:03}", f"/adapters/customers/{at:03}") for at in range(198)))

    async def all_known() -> bool:
        return bool((await sidecar.get("/status")).json()["adapters"]["total"] == 200)

    async with asyncio.timeout(20):
        while not await all_known():  # noqa: ASYNC110 - another process is waited for
            await asyncio.sleep(0.05)
    tab = await browser.tab()
    await tab.open(f"{url}/")
    assert await tab.value("document.querySelectorAll('tbody tr').length") == 50
    assert "1 to 50 of 200" in await tab.text(".pages")
    await keep(tab, "two-hundred")
    await tab.value("document.querySelector('a[rel=next]').click()")
    await tab.until("document.querySelector('.pages')?.innerText.includes('51 to 100 of 200')")
    choose = "(s => { s.value = 'parked'; s.dispatchEvent(new Event('change', {bubbles: true})); })"
    await tab.value(f"{choose}(document.querySelector('select[name=state]'))")
    await tab.until("document.body.innerText.includes('No adapter matches.')")
    assert "0 of 200 adapters" in await tab.text()
    _quiet(tab, url)
