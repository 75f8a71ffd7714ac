"""Draw docs/schedules/*.png: what Prefect and MLflow show of runs that end in each way. Start `make serve` first."""

import io
import os
import shutil
import sys
import time
from pathlib import Path

import httpx
from PIL import Image
from playwright.sync_api import Page, sync_playwright

PREFECT = f"http://127.0.0.1:{os.environ.get('PREFECT_PORT', 4200)}"
MLFLOW = f"http://127.0.0.1:{os.environ.get('MLFLOW_PORT', 5000)}"
PICTURES = Path(__file__).parent / "schedules"
RUNS = {
    "completed": ("run/weekly-train", "2024-06-29"),
    "held": ("refresh/daily-score", "2024-06-01"),
    "failed": ("refresh/daily-score", "2020-01-01"),
}
"""By how it ends: the deployment, and the instant that the run is about."""


def main() -> None:
    """Run deployments one after the other and take pictures of the pages."""
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("Chromium is missing, which draws the pictures: apt-get install chromium")
    with httpx.Client(base_url=f"{PREFECT}/api", timeout=60) as server:
        runs = {name: _run(server, *asked) for name, asked in RUNS.items()}
    PICTURES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 1100})
        _open(page, f"{PREFECT}/runs", "Hide subflows")
        page.get_by_text("Hide subflows").click()
        _take(page, "runs")
        for name in ("held", "failed"):
            _open(page, f"{PREFECT}/runs/flow-run/{runs[name]}", name.title())
            _take(page, name)
        page.set_viewport_size({"width": 1200, "height": 420})
        _open(page, f"{MLFLOW}/#/models", "ecom-segments")
        page.get_by_role("button", name="Try it now").click()  # what MLflow tells newcomers
        page.locator("[data-component-id='mlflow.assistant.chat_panel.close']").click()
        _take(page, "models")
        browser.close()


def _run(server: httpx.Client, deployment: str, as_of: str) -> str:
    found = server.get(f"/deployments/name/{deployment}").raise_for_status().json()
    asked = {"parameters": found["parameters"] | {"as_of": as_of}, "state": {"type": "SCHEDULED"}}
    run = server.post(f"/deployments/{found['id']}/create_flow_run", json=asked).raise_for_status().json()
    while server.get(f"/flow_runs/{run['id']}").json()["state_type"] not in ("COMPLETED", "FAILED", "CRASHED"):
        time.sleep(1)
    return str(run["id"])


def _open(page: Page, address: str, shown: str) -> None:
    page.goto(address)
    page.get_by_text(shown, exact=True).first.wait_for(timeout=60_000)


def _take(page: Page, name: str) -> None:
    page.wait_for_timeout(3_000)  # what moves comes to rest
    picture = Image.open(io.BytesIO(page.screenshot()))
    picture.convert("RGB").quantize(64).save(PICTURES / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
