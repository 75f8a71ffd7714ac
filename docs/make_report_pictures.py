"""Draw docs/report/*.png: the sections of the User Segment Report of examples/ecom, as docs/report.md shows them."""

import io
import os
import shutil
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from flows.one_off import ONE_OFF_SETTINGS

EXAMPLE = "examples/ecom"
DAYS = (22, 29)
"""Of June 2024: a version each, so that there is something to compare with."""
PICTURES = Path(__file__).parent / "report"
WIDE, HIGH = 1200, 1100
SEGMENT = "section[id^=segment]:has(.users)"


def main() -> None:
    """Publish two versions and take the pictures of the later one's report; or of a report.html that is named."""
    if len(sys.argv) > 1:
        return draw(Path(sys.argv[1]))
    os.environ |= ONE_OFF_SETTINGS  # read when Prefect is imported
    from flows.run import run

    with tempfile.TemporaryDirectory() as folder:
        shop = shutil.copytree(EXAMPLE, Path(folder, EXAMPLE), ignore=shutil.ignore_patterns("lake", "published"))
        config = shop / "habitus.toml"
        config.write_text(f"{config.read_text()}\n[publish.brake]\naudience_change_max = 10\n")
        for day in DAYS:
            run(str(config), datetime(2024, 6, day, tzinfo=UTC))
        return draw(shop / "published" / "reports" / "latest" / "report.html")


def draw(report: Path) -> None:
    """Open a report in Chromium and take a picture of each section."""
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("Chromium is missing, which draws the pictures: apt-get install chromium")
    PICTURES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDE, "height": HIGH})
        page.goto(report.resolve().as_uri())
        segment = page.locator(SEGMENT).first.get_attribute("id") or ""
        for name, fragment in (("overview", "overview"), ("segment", segment), ("comparison", "comparison")):
            _take(page, name, fragment)
        _take(page, "predictions", "models")
        _take(page, "users", segment, f"#{segment} .users")
        page.emulate_media(color_scheme="dark")
        _take(page, "dark", segment, f"#{segment} h3:has(+ .figures)")
        page.set_viewport_size({"width": 390, "height": 1100})
        page.emulate_media(color_scheme="light")
        _take(page, "phone", segment)
        browser.close()


def _take(page: Page, name: str, fragment: str, top: str = "body") -> None:
    page.evaluate("(fragment) => { location.hash = fragment }", fragment)
    page.locator(f"#{fragment} h2").wait_for()
    if page.locator(f"#{fragment} .users").count():
        page.locator(f"#{fragment} .users tbody tr").first.wait_for()
    page.locator(top).first.evaluate("(element) => element.scrollIntoView()")
    picture = Image.open(io.BytesIO(page.screenshot()))
    picture.convert("RGB").save(PICTURES / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
