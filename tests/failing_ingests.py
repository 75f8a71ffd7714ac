"""Ingest configurations that fail, against a Prefect server of one's own that keeps states, errors and logs."""

import sys
import time
from collections.abc import Callable

from prefect_server import await_server, started

LATEST_S = 60


def fail(configs: list[str]) -> None:
    """Run all, print the errors, and wait until the server has written down what became of flows and tasks."""
    import duckdb
    from prefect import flow, task
    from prefect.client.orchestration import get_client

    from flows.ingest import ingest
    from flows.world import discreet

    text = sys.stdin.read()  # which is no parameter of a run

    @task
    @discreet
    def convert() -> None:
        duckdb.execute(f"SELECT CAST(value AS INT) FROM (VALUES ('{text}')) AS rows(value)")

    @flow
    def unforeseen() -> None:
        convert()

    runs: list[Callable[[], object]] = [unforeseen, *(lambda config=config: ingest(config) for config in configs)]
    for run in runs:
        try:
            run()
        except Exception as error:
            print(f"{type(error).__name__}: {error}")
    until = time.monotonic() + LATEST_S
    with get_client(sync_client=True) as client:
        while True:
            logs = [one for one in client.read_logs() if one.message.startswith("Finished in state Failed")]
            failed = [one for one in client.read_task_runs() if one.state_name == "Failed"]
            if len(logs) == 2 * len(runs) and len(failed) == len(runs):
                break
            assert time.monotonic() < until, f"Prefect's server wrote down {len(logs)} logs and {len(failed)} states"
            time.sleep(0.1)


if __name__ == "__main__":
    with started(services=True):  # before Prefect is imported, which reads where it is
        await_server()
        fail(sys.argv[1:])
