"""Processes that ingest different files into one lake, all at once."""

import multiprocessing
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from test_ingest import CONFIG, HEADER, NOW

from features.sources import SourceError
from flows.ingest import accept_files, ingest
from flows.world import may_pass

PROCESSES = multiprocessing.get_context("forkserver")
PRELOADED = ["flows.ingest", "ibis.backends.duckdb", "hypothesis", "pytest"]
EVENTS_IN_FILE = 30
LATEST_S = 600


def write_files(folder: Path, count: int) -> list[Path]:
    """Write files, and a configuration for each; all have the same three days, one event, and a row without a user."""
    folder.mkdir()
    configs = []
    for number in range(count):
        rows = [
            f"{number}-{event},user {event % 7},2024-03-0{event % 3 + 1} 10:00:{event:02},home"
            for event in range(EVENTS_IN_FILE)
        ]
        rows += ["of all,ada,2024-03-01 10:00:00,home", f"no user of {number},,2024-03-01 10:00:00,home"]
        (folder / f"{number}.csv").write_text("\n".join([HEADER, *rows]) + "\n")
        configs.append(folder / f"{number}.toml")
        configs[-1].write_text(CONFIG.replace("{files}", f"{number}.csv"))
    return configs


def ingest_at_once(configs: list[Path], locked: bool) -> list[int]:
    """Ingest by as many processes as there are configurations; return how often each was refused.

    They wait for each other, or, without a lock, begin again when they are refused.
    """
    PROCESSES.set_forkserver_preload(PRELOADED)
    begin, answers = PROCESSES.Barrier(len(configs)), PROCESSES.Queue()
    processes = [PROCESSES.Process(target=_ingest, args=(str(config), locked, begin, answers)) for config in configs]
    for process in processes:
        process.start()
    try:
        return [answers.get(timeout=LATEST_S) for _ in processes]
    finally:
        for process in processes:
            process.join(timeout=10)
            process.kill()


def _ingest(config: str, locked: bool, begin: Barrier, answers: Any) -> None:
    begin.wait()
    if locked:
        ingest(config)
        answers.put(0)
        return
    refused = 0
    while True:
        try:
            accept_files.fn(config, NOW, False)
        except Exception as error:
            # Of a first ingest that is at work, one cannot tell that it did not die.
            if not (may_pass(error) or isinstance(error, SourceError)):
                raise
            refused += 1
        else:
            answers.put(refused)
            return
