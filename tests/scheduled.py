"""Prefect as `make serve` has it: a real server, the deployments of prefect.yaml, and a worker that runs them."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import yaml
from prefect_server import serving, wait_for

HOUSE = Path(__file__).parents[1]
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
LATEST_S = 300
LOG_LATEST_S = 30
TRIES_MAX, TRY_AGAIN_S = 10, 1


class Patient(httpx.HTTPTransport):
    """Ask again where the server is unavailable, as Prefect's own client does: its database was locked for too long."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = super().handle_request(request)
        for _ in range(TRIES_MAX):
            if response.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                break
            response.close()
            time.sleep(TRY_AGAIN_S)
            response = super().handle_request(request)
        return response


@dataclass(frozen=True)
class Schedule:
    """A server, by its address, and the worker's terminal."""

    server: httpx.Client
    terminal: Path

    def start(self, deployment: str, at: datetime | None = None, **parameters: str) -> str:
        """Have a deployment run now, or as if at another time, as its schedule would; return the run's id."""
        found = self.server.get(f"/deployments/name/{deployment}").raise_for_status().json()
        state: dict[str, Any] = {"type": "SCHEDULED"}
        if at is not None:
            state["state_details"] = {"scheduled_time": at.isoformat()}
        asked = {"parameters": found["parameters"] | parameters, "state": state}
        run = self.server.post(f"/deployments/{found['id']}/create_flow_run", json=asked).raise_for_status().json()
        return str(run["id"])

    def repeat(self, deployment: str, every_s: int) -> None:
        """Have a deployment run again and again."""
        found = self.server.get(f"/deployments/name/{deployment}").raise_for_status().json()
        schedules = [{"active": True, "schedule": {"interval": every_s}}]
        self.server.post(f"/deployments/{found['id']}/schedules", json=schedules).raise_for_status()

    def read(self, run: str) -> dict[str, Any]:
        """Return what the server says of a run."""
        told: dict[str, Any] = self.server.get(f"/flow_runs/{run}").raise_for_status().json()
        return told

    def log(self, run: str) -> list[str]:
        """Return the lines of a run's page, once the last is there: runs send them some time after their state."""
        asked = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC"}
        until = time.monotonic() + LOG_LATEST_S
        while True:
            found = self.server.post("/logs/filter", json=asked).raise_for_status().json()
            lines = [one["message"] for one in found]
            if any(line.startswith("Finished in state") for line in lines) or time.monotonic() > until:
                return lines
            time.sleep(0.2)

    def runs(self, deployment: str) -> list[dict[str, Any]]:
        """Return the scheduled runs of a deployment that have ended, in the order of their schedule."""
        asked = {
            "deployments": {"name": {"any_": [deployment]}},
            "flow_runs": {"state": {"type": {"any_": sorted(ENDED)}}, "tags": {"all_": ["auto-scheduled"]}},
            "sort": "EXPECTED_START_TIME_ASC",
        }
        runs: list[dict[str, Any]] = self.server.post("/flow_runs/filter", json=asked).raise_for_status().json()
        return runs

    def artifacts(self) -> set[str]:
        """Return the keys of what runs have left."""
        return {one["key"] for one in self.server.post("/artifacts/filter", json={}).raise_for_status().json()}

    def await_end(self, run: str) -> dict[str, Any]:
        """Return what the server says of a run that has ended, and its page's lines."""
        wait_until(lambda: self.read(run)["state_type"] in ENDED, self.terminal)
        return self.read(run) | {"log": self.log(run)}


def wait_until(happened: Any, terminal: Path, latest_s: float = LATEST_S) -> None:
    """Ask again and again; fail with what the worker's terminal shows where it takes too long."""
    until = time.monotonic() + latest_s
    while not happened():
        assert time.monotonic() < until, terminal.read_text()[-5_000:]
        time.sleep(0.2)


@contextmanager
def schedule(folder: Path, deployments: list[dict[str, Any]]) -> Iterator[Schedule]:
    """Serve deployments whose paths are relative to a folder, until the end."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment = ours | {
        "PREFECT_HOME": str(folder / ".prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PYTHONPATH": str(HOUSE),
    }
    (folder / "prefect.yaml").write_text(yaml.safe_dump({"pull": None, "deployments": deployments}))
    terminal = folder / "worker.log"
    with serving("--no-ui", environment=environment) as address:
        environment |= {"PREFECT_API_URL": address}
        wait_for(address)

        def prefect(*arguments: str) -> list[str]:
            return [sys.executable, "-m", "prefect", "--no-prompt", *arguments]

        def do(*arguments: str) -> None:
            done = subprocess.run(
                prefect(*arguments),
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stdout + done.stderr

        do("work-pool", "create", "habitus", "--type", "process")
        with terminal.open("w") as log:
            command = prefect("worker", "start", "--pool", "habitus", "--type", "process")
            worker = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            do("deploy", "--all")
            with httpx.Client(base_url=address, timeout=60, transport=Patient()) as server:
                yield Schedule(server, terminal)
        finally:
            worker.terminate()
            worker.wait(timeout=60)


def shipped() -> list[dict[str, Any]]:
    """Return the deployments of prefect.yaml, of the shop in the folder `shop`, without their schedules."""
    deployments: list[dict[str, Any]] = yaml.safe_load((HOUSE / "prefect.yaml").read_text())["deployments"]
    return [one | {"parameters": {"config": "shop/habitus.toml"}, "schedules": []} for one in deployments]
