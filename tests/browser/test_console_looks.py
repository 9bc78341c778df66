"""How the console looks: on a telephone and a wide screen, light and dark, with and without a dialog; its charts."""

import httpx
import pytest
from playwright.async_api import Browser, Page, expect

from tests.browser.looks import AXE, SIZES, WITHOUT_AXE, faults
from tests.browser.test_console_pages import TOKEN, dead
from tests.support.processes import System
from tests.support.smtp_server import SmtpServer
from tests.support.waiting import eventually
from user_svc.console.pages import PAGES

RED = """() => {
  const canvas = document.querySelectorAll('#chart-area canvas')[1]; // the queue's, whose line is blue
  const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  let red = 0;
  for (let i = 0; i < data.length; i += 4)
    red += data[i + 3] > 0 && data[i] > 120 && Math.max(data[i + 1], data[i + 2]) < 70;
  return red;
}"""


async def test_every_page_fits_a_telephone_and_has_no_serious_fault(
    system: System, smtp: SmtpServer, browser: Browser
) -> None:
    """360 px wide and 1280, light and dark, and each page that acts with a dialog open."""
    await system.start()
    await dead(system, smtp, 3)
    async with httpx.AsyncClient() as client:
        letters = (await client.get(f"{system.user.admin}/dead-letters")).json()["dead_letters"]
    history = f"/console/mails/{letters[0]['user_id']}"
    asks = {"/": "#open-breaker", PAGES["Dead letters"]: "#replay-all", history: "#erase"}
    found = []
    for scheme, width in SIZES:
        context = await browser.new_context(viewport={"width": width, "height": 780}, color_scheme=scheme)
        page = await context.new_page()
        for address in [*PAGES.values(), history, "/console/login"]:
            await page.goto(system.user.admin + address)
            if await page.locator("#connection").count():
                await expect(page.locator("#connection")).to_have_text("Live" if address == "/" else "Up to date")
            found += await faults(page, f"{address} {scheme} {width}")
            if address in asks:
                await page.click(asks[address])
                await expect(page.locator("#ask")).to_be_visible()
                found += await faults(page, f"{asks[address]} {scheme} {width}")
        await context.close()
    assert found == []
    if not AXE.exists():
        pytest.skip(WITHOUT_AXE)


async def test_the_login_fits_and_the_way_out_stays_in_its_place(system: System, browser: Browser) -> None:
    """The form of a system with a token, before and after a wrong one; "Log out" is at one place on all pages."""
    system.set_env(ADMIN_TOKEN=TOKEN)
    await system.start(email=False)
    found = []
    for scheme, width in SIZES:
        context = await browser.new_context(viewport={"width": width, "height": 780}, color_scheme=scheme)
        page = await context.new_page()
        await page.goto(f"{system.user.admin}/console/login")
        found += await faults(page, f"login {scheme} {width}")
        await page.fill("#token", "not-the-token")
        await page.keyboard.press("Enter")
        await expect(page.locator("#login-result")).to_contain_text("not the token")
        found += await faults(page, f"refused login {scheme} {width}")
        await page.fill("#token", TOKEN)
        await page.keyboard.press("Enter")
        await page.wait_for_url(f"{system.user.admin}/")
        ends = set()
        for address in PAGES.values():
            await page.goto(system.user.admin + address)
            box = await page.locator("#logout").bounding_box()
            assert box is not None
            ends.add(round(box["x"] + box["width"]))
            found += await faults(page, f"{address} {scheme} {width}, logged in")
        assert len(ends) == 1, (width, ends)
        await context.close()
    assert found == []
    if not AXE.exists():
        pytest.skip(WITHOUT_AXE)


async def test_the_charts_show_when_the_breaker_was_open(system: System, page: Page) -> None:
    """A band in red behind the lines from the next sample on, and none before."""
    await system.start()
    await page.goto(system.user.admin)
    await expect(page.locator("#chart-area figure")).to_have_count(4, timeout=20_000)
    assert await page.evaluate(RED) == 0
    async with httpx.AsyncClient() as client:
        assert (await client.post(f"{system.user.admin}/circuit-breaker/open", json={})).status_code == 200
    await eventually(lambda: page.evaluate(RED), within_s=20, what="a band in the chart")


@pytest.mark.parametrize("jaeger", ["", "http://127.0.0.1:16686/"])
async def test_a_trace_id_leads_to_jaeger_where_there_is_one(system: System, page: Page, jaeger: str) -> None:
    """A link to the trace where JAEGER_URL is set, else the beginning of the id; a mail not sampled has neither."""
    if jaeger:
        system.set_env(JAEGER_URL=jaeger)
    await system.start()
    trace = f"{7:032x}"
    ids = []
    async with httpx.AsyncClient(base_url=system.user.url) as client:
        for n, sampled in enumerate(("01", "00")):
            user = {"email": f"ada{n}@example.com", "name": "Ada"}
            headers = {"traceparent": f"00-{trace}-{1:016x}-{sampled}"}
            ids.append((await client.post("/v1/users", json=user, headers=headers)).json()["id"])
    for user_id, words in zip(ids, (trace[:8], "not sampled"), strict=True):
        await page.goto(f"{system.user.admin}/console/mails/{user_id}")
        cell = page.locator(".mail tbody td").last
        await expect(cell).to_have_text(words, timeout=20_000)
        link = cell.locator("a")
        if jaeger and words != "not sampled":
            await expect(link).to_have_attribute("href", f"http://127.0.0.1:16686/trace/{trace}")
        else:
            await expect(link).to_have_count(0)
