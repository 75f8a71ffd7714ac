import errno
import fcntl
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from messages import assert_documented

from publish.lock import LockedError, Work, publishing_lock, working_lock

RUN, INGEST = Work("run of shop", "Europe/Berlin"), Work("ingest of shop", "Europe/Berlin")
HOLDER = r"run of shop \(process \d+, since \d{4}-\d\d-\d\d \d\d:\d\d Europe/Berlin\)"


class Clock:
    """A clock that only waiting moves on, and what to do meanwhile."""

    def __init__(self, meanwhile: Callable[[], Any] = lambda: None) -> None:
        self.now_s = 0.0
        self.meanwhile = meanwhile

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.meanwhile()


def said_by_who_waits(folder: Path, wait_s: float, meanwhile: Callable[[], Any] = lambda: None) -> list[str]:
    said, clock = list[str](), Clock(meanwhile)
    with working_lock(folder, INGEST, wait_s, said.append, clock, clock.sleep):
        pass
    return said


def test_a_second_waits_and_is_refused_with_who_holds_it(tmp_path: Path) -> None:
    clock = Clock()
    with (
        publishing_lock(tmp_path, RUN, 0),
        pytest.raises(LockedError, match=rf"{tmp_path} is in use by {HOLDER}, which did not end within 5 s"),
        publishing_lock(tmp_path, INGEST, 5, lambda line: None, clock, clock.sleep),
    ):
        pass
    assert clock.now_s >= 5


def test_who_is_refused_is_told_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "lake").mkdir()
    with (
        working_lock(tmp_path / "lake", RUN, 0),
        pytest.raises(LockedError) as refused,
        working_lock(tmp_path / "lake", INGEST, 0),
    ):
        pass
    said = re.sub(r"process \d+, since [\d-]+ [\d:]+", "process 4711, since 2024-06-30 14:03", str(refused.value))
    assert_documented("another command on the same lake did not end in time", said.replace("0 s", "6 h"), tmp_path)


def test_a_second_goes_on_when_the_first_is_done(tmp_path: Path) -> None:
    first = publishing_lock(tmp_path, RUN, 0)
    first.__enter__()
    clock = Clock(lambda: first.__exit__(None, None, None))
    with publishing_lock(tmp_path, INGEST, 5, lambda line: None, clock, clock.sleep):
        pass


def test_an_error_lets_go(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), publishing_lock(tmp_path, RUN, 0):
        raise ZeroDivisionError
    with publishing_lock(tmp_path, RUN, 0):
        pass


def test_lakes_have_locks_of_their_own(tmp_path: Path) -> None:
    with publishing_lock(tmp_path / "a", RUN, 0), publishing_lock(tmp_path / "b", RUN, 0):
        pass


def test_who_waits_is_told_at_once_for_whom_and_again_every_minute(tmp_path: Path) -> None:
    said, clock = list[str](), Clock()
    with (
        working_lock(tmp_path, RUN, 0),
        pytest.raises(LockedError),
        working_lock(tmp_path, INGEST, 190, said.append, clock, clock.sleep),
    ):
        pass
    assert [re.sub(HOLDER, "HOLDER", line) for line in said] == [
        "waiting for HOLDER, for 3 min at most",
        "waiting for HOLDER, for 2 min at most",
        "waiting for HOLDER, for 1 min at most",
        "waiting for HOLDER, for 10 s at most",
    ]


def test_who_waits_is_told_when_it_is_for_another(tmp_path: Path) -> None:
    turns = [working_lock(tmp_path, work, 0) for work in (RUN, Work("forget of shop", "UTC"))]
    turns[0].__enter__()

    def take_turns() -> None:
        turns.pop(0).__exit__(None, None, None)
        if turns:
            turns[0].__enter__()

    said = said_by_who_waits(tmp_path, 5, take_turns)
    assert [line.partition(" (")[0] for line in said] == ["waiting for run of shop", "waiting for forget of shop"]


@pytest.mark.parametrize(
    ("left", "who"),
    [
        ({}, "another process"),
        ({"process": "gone"}, "another process"),
        ({"host": "other", "process": "gone"}, "run of shop (process {gone} on other, since 14:03)"),
    ],
)
def test_what_a_killed_process_left_does_not_mislead(tmp_path: Path, left: dict[str, Any], who: str) -> None:
    """A process has the lock a moment before the file says so."""
    killed = subprocess.Popen(["true"])
    killed.wait()
    told = {"what": "run of shop", "since": "14:03", "process": os.getpid(), "host": socket.gethostname(), **left}
    told |= {"process": killed.pid} if left else {}
    file = tmp_path / "work.lock"
    file.write_text(json.dumps(told) if left else '{"what": "ru')
    taken = file.open()
    fcntl.flock(taken, fcntl.LOCK_EX)

    said, clock = list[str](), Clock()
    with (
        pytest.raises(LockedError, match=rf"is in use by {re.escape(who.format(gone=killed.pid))}, which"),
        working_lock(tmp_path, INGEST, 90, said.append, clock, clock.sleep),
    ):
        pass
    taken.close()
    assert said[-1] == f"waiting for {who.format(gone=killed.pid)}, for 30 s at most"


@pytest.mark.ci
def test_a_lock_is_free_when_its_process_was_killed(tmp_path: Path) -> None:
    code = "import time; from pathlib import Path; from publish.lock import *; w = Work('run of shop', 'UTC')\n"
    code += f"with working_lock(Path({str(tmp_path)!r}), w, 0): print('taken', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "taken\n"
    with pytest.raises(LockedError, match=f"process {holder.pid}, since"), working_lock(tmp_path, INGEST, 0):
        pass
    holder.kill()
    holder.wait()
    assert said_by_who_waits(tmp_path, 0) == []


def test_a_disk_that_locks_no_files_is_said_and_nobody_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    said = list[str]()
    with working_lock(tmp_path, RUN, 0), working_lock(tmp_path, INGEST, 0, said.append):
        pass
    [line] = said
    assert_documented("a lake on a disk that locks no files", line.replace(str(tmp_path), "lake"))


def test_working_and_publishing_do_not_wait_for_each_other(tmp_path: Path) -> None:
    with working_lock(tmp_path, RUN, 0), publishing_lock(tmp_path, RUN, 0):
        pass


def test_a_folder_in_which_nothing_was_made_is_gone_again(tmp_path: Path) -> None:
    with working_lock(tmp_path / "lake", RUN, 0):
        pass
    assert not (tmp_path / "lake").exists()


def test_who_waited_for_a_lock_that_is_gone_takes_a_new_one(tmp_path: Path) -> None:
    first = working_lock(tmp_path / "lake", RUN, 0)
    first.__enter__()
    clock = Clock(lambda: first.__exit__(None, None, None))
    with (
        working_lock(tmp_path / "lake", INGEST, 5, lambda line: None, clock, clock.sleep),
        pytest.raises(LockedError),
        working_lock(tmp_path / "lake", RUN, 0),
    ):
        pass
