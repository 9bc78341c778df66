"""What is wrong with a page as it stands: it is wider than its window, or has a fault that axe-core finds."""

from typing import Literal

from playwright.async_api import Page

from tests.support.processes import ROOT

AXE = ROOT / ".tools" / "node_modules" / "axe-core" / "axe.min.js"
WITHOUT_AXE = "all fits; without axe-core: `npm install --prefix .tools axe-core` fetches it"
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
SIZES = [(scheme, width) for scheme in SCHEMES for width in (360, 1280)]


async def faults(page: Page, what: str) -> list[str]:
    """Each serious or critical one, in words. Without axe-core only the width is looked at."""
    width = await page.evaluate("document.documentElement.scrollWidth - innerWidth")
    found = [f"{what}: {width} px too wide"] if width > 0 else []
    if AXE.exists():
        await page.evaluate(AXE.read_text())  # by the debugger: the page's policy would not let it in
        found += [
            f"{what}: {fault['id']}: {[node['html'][:120] for node in fault['nodes']]}"
            for fault in (await page.evaluate("axe.run()"))["violations"]
            if fault["impact"] in ("serious", "critical")
        ]
    return found
