"""Take the screenshots of the web page in docs/figures, with chromium.

    logo-local serve demo & python docs/page_figures.py http://127.0.0.1:8080/

The first is a conversation with that server. The second shows a pool of 300 adapters that a
stand-in engine pretends to have.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from serving import serving

from logo_local.fake import FakeLoGo
from logo_local.server.app import create_app

FIGURES = Path(__file__).parent / "figures"
PROMPTS = (
    "Show me a Python function that returns the sum of a list, in a code block.",
    "Rewrite in the passive voice: The scientist helped the presidents.",
)


def opened(browser: Browser, address: str, scheme: str) -> Page:
    """The page at `address`, in a window of the size that the figures have."""
    page = browser.new_page(
        viewport={"width": 1200, "height": 840}, color_scheme=scheme, reduced_motion="reduce"
    )
    page.goto(address)
    page.wait_for_selector("#map [role=option]")
    return page


def send(page: Page, prompt: str) -> None:
    """Send a prompt, and wait for the whole answer."""
    page.locator("#prompt").fill(prompt)
    page.keyboard.press("Enter")
    expect(page.locator("#send")).to_have_text("Stop")
    expect(page.locator("#send")).to_have_text("Send", timeout=120_000)


def main(address: str) -> None:
    """Write both figures."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = opened(browser, address, "light")
        for prompt in PROMPTS:
            send(page, prompt)
        page.screenshot(path=FIGURES / "page.png")
        scores = {f"adapter-{i:03}": (i * 37 % 300 / 300) ** 6 for i in range(300)}
        with serving(create_app([FakeLoGo(scores, ["This pool is made up."])])) as large:
            page = opened(browser, large, "dark")
            send(page, "How does a pool of 300 adapters look?")
            page.screenshot(path=FIGURES / "page-map.png")
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
