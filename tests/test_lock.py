import os
from pathlib import Path

import pytest

from publish.lock import LockedError, publishing_lock, working_lock


class Clock:
    """A clock that only waiting moves on, and what to do meanwhile."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def test_a_second_waits_and_is_refused_with_who_holds_it(tmp_path: Path) -> None:
    clock = Clock()
    with (
        publishing_lock(tmp_path, 0),
        pytest.raises(LockedError, match=r"process \d+ publishes or erases there, and was not done after 5 s"),
        publishing_lock(tmp_path, 5, clock, clock.sleep),
    ):
        pass
    assert clock.now_s >= 5


def test_a_second_goes_on_when_the_first_is_done(tmp_path: Path) -> None:
    first = publishing_lock(tmp_path, 0)
    first.__enter__()

    def finish(seconds: float) -> None:
        first.__exit__(None, None, None)

    with publishing_lock(tmp_path, 5, lambda: 0, finish):
        pass


def test_an_error_lets_go(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), publishing_lock(tmp_path, 0):
        raise ZeroDivisionError
    with publishing_lock(tmp_path, 0):
        pass


def test_lakes_have_locks_of_their_own(tmp_path: Path) -> None:
    with publishing_lock(tmp_path / "a", 0), publishing_lock(tmp_path / "b", 0):
        pass


def test_who_waits_for_work_is_told_once_for_whom(tmp_path: Path) -> None:
    clock, told = Clock(), list[str]()
    with (
        working_lock(tmp_path, 0),
        pytest.raises(LockedError, match=r"process \d+ works there, and was not done after 5 s"),
        working_lock(tmp_path, 5, clock, clock.sleep, told.append),
    ):
        pass
    assert told == [f"process {os.getpid()}"]


def test_working_and_publishing_do_not_wait_for_each_other(tmp_path: Path) -> None:
    with working_lock(tmp_path, 0), publishing_lock(tmp_path, 0):
        pass


def test_a_folder_in_which_nothing_was_made_is_gone_again(tmp_path: Path) -> None:
    with working_lock(tmp_path / "lake", 0):
        pass
    assert not (tmp_path / "lake").exists()


def test_who_waited_for_a_lock_that_is_gone_takes_a_new_one(tmp_path: Path) -> None:
    first = working_lock(tmp_path / "lake", 0)
    first.__enter__()

    def finish(seconds: float) -> None:
        first.__exit__(None, None, None)

    with (
        working_lock(tmp_path / "lake", 5, lambda: 0, finish),
        pytest.raises(LockedError),
        working_lock(tmp_path / "lake", 0),
    ):
        pass
