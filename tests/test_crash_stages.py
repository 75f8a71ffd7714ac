"""Stages that are killed, or whose disk is full, a few times; `make crash-stages` and `make full-disk` do it often."""

import subprocess
from pathlib import Path

import crash_stages
import full_disk
import pytest
from stages import STEPS

LIGHT = ["ingest"]


@pytest.mark.ci
def test_what_is_killed_ends_as_undisturbed(capsys: pytest.CaptureFixture[str]) -> None:
    status = crash_stages.main(kills=2, seed=1, names=LIGHT)
    assert status == 0, capsys.readouterr().out


@pytest.mark.slow
def test_every_stage_that_is_killed_ends_as_undisturbed(capsys: pytest.CaptureFixture[str]) -> None:
    status = crash_stages.main(kills=len(STEPS), seed=1)
    assert status == 0, capsys.readouterr().out


@pytest.fixture
def may_mount(tmp_path: Path) -> None:
    """Skip where this user may mount no disk."""
    try:
        with full_disk.mounted(tmp_path / "disk"):
            pass
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("to mount a small disk takes root")


@pytest.mark.ci
@pytest.mark.usefixtures("may_mount")
def test_a_full_disk_is_said_and_what_ran_on_it_ends_as_undisturbed(capsys: pytest.CaptureFixture[str]) -> None:
    status = full_disk.main(fills=1, seed=1, names=LIGHT)
    assert status == 0, capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("may_mount")
def test_every_stage_says_that_the_disk_is_full_and_ends_as_undisturbed(capsys: pytest.CaptureFixture[str]) -> None:
    status = full_disk.main(fills=len(STEPS), seed=1)
    assert status == 0, capsys.readouterr().out
