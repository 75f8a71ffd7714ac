"""Call a function in a process of its own, and say what it took: python apart.py contestants.habitus:sessionize ..."""

import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

MOST_SECONDS = 3600


@dataclass(frozen=True)
class Taken:
    """Say what a call took: the time on the clock, that of all processors, and the most memory at any moment."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int


class FailedError(Exception):
    """Say which call failed, and how."""


def call_apart(function: str, *arguments: Path | str) -> Taken:
    """Call `module:function` in a process of its own, and measure it; neither imports nor the module's `start` count.

    Raises FailedError if it fails or takes more than an hour.
    """
    command = [sys.executable, __file__, function, *(str(argument) for argument in arguments)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=MOST_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise FailedError(f"{function} took more than {MOST_SECONDS} s") from error
    if done.returncode:
        raise FailedError(f"{function} failed:\n{done.stderr.strip()}")
    return Taken(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Call the function that the command names with the texts that it gives."""
    module_name, _, function_name = sys.argv[1].partition(":")
    module = import_module(module_name)
    getattr(module, "start", lambda: None)()
    cpu_before, before = _cpu_seconds(), time.perf_counter()
    getattr(module, function_name)(*(Path(text) for text in sys.argv[2:]))
    taken = Taken(time.perf_counter() - before, _cpu_seconds() - cpu_before, _peak_bytes())
    print("\n" + json.dumps(asdict(taken)))


def _cpu_seconds() -> float:
    """Return what this process and its children, the JVM among them, have used so far."""
    fields = [(process / "stat").read_text().rpartition(")")[2].split() for process in _children()]
    ticks = sum(int(field[11]) + int(field[12]) for field in fields)
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def _peak_bytes() -> int:
    """Return the most memory of this process, and of each of its children, at any moment."""
    if not Path("/proc/self/status").exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
    # Not from getrusage, which counts what the parent had when it forked.
    lines = [line for process in (Path("/proc/self"), *_children()) for line in _status(process) if "VmHWM" in line]
    return sum(int(line.split()[1]) * 1024 for line in lines)


def _status(process: Path) -> list[str]:
    return (process / "status").read_text().splitlines()


def _children() -> list[Path]:
    """List this process' children and theirs, where the system tells."""
    parent_of = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            parent_of[process.name] = (process / "stat").read_text().rpartition(")")[2].split()[1]
    family = {str(os.getpid())}
    while found := {process for process, parent in parent_of.items() if parent in family} - family:
        family |= found
    return [Path("/proc") / process for process in family - {str(os.getpid())}]


if __name__ == "__main__":
    main()
