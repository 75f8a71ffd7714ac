"""Let stages run on a disk that takes no more, then on one that does: `make full-disk` (as root, to mount a disk).

Each trial begins with what a shop was before a step, on a small disk with little left. The step fails with a line that
says so, each table is what it was or what it becomes, and the same step ends as undisturbed once there is space.
"""

import argparse
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crash_stages import FindingError, Undisturbed, finish, run_undisturbed
from stages import STEPS, attempt, restore, tables_of

SIZE_MB = 200
LEAST_BYTES = 8_192
SAID = re.compile(r"OSError: the disk of \S+ is full: free some space, and run the same command again")


@contextmanager
def mounted(folder: Path) -> Iterator[None]:
    """Have a small disk at a folder. Raises CalledProcessError where that is not allowed."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "tmpfs", str(folder)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, left_bytes: int) -> Path:
    """Write a file that leaves so much space on a disk; the file system's blocks make it a little more."""
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        try:
            while True:
                file.write(bytes(1_000_000))
                file.flush()
        except OSError:
            pass
    with ballast.open("r+b") as file:
        file.truncate(ballast.stat().st_size - left_bytes)
    return ballast


def try_one(one: Undisturbed, folder: Path, left_bytes: int) -> bool:
    """Run a step with so much space, then with enough; tell whether the disk was full.

    Raises FindingError where it was and something else was said, or a table is neither as before nor as after.
    """
    restore(one.before, folder)
    before = tables_of(folder)
    ballast = fill(folder.parent, left_bytes)
    said, _ = attempt(one.step, folder)
    if said != "done" and not SAID.match(said):
        raise FindingError(f"{one.step.name} with {left_bytes:,} bytes left: {said}")
    ballast.unlink()
    for table, content in tables_of(folder).items():
        if content not in (before.get(table), one.after.get(table)):
            raise FindingError(
                f"{one.step.name} with {left_bytes:,} bytes left: {table} is neither as before nor after"
            )
    finish(one, folder)
    return said != "done"


def main(fills: int, seed: int = 0, names: list[str] | None = None) -> int:
    """Fill the disk so often, print what was found, and return the exit status."""
    draw, began_s = random.Random(seed), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="full-") as within:
        disk, kept = Path(within, "disk"), Path(within, "kept")
        folder = disk / "shop"
        kept.mkdir()
        with mounted(disk):
            try:
                known = run_undisturbed(folder, kept, names or [step.name for step in STEPS])
                filled: Counter[str] = Counter()
                most_bytes = dict.fromkeys((one.step.name for one in known), 4_000_000)
                while filled.total() < fills:
                    one = known[filled.total() % len(known)]
                    name = one.step.name
                    left_bytes = int(LEAST_BYTES * (most_bytes[name] / LEAST_BYTES) ** draw.random())
                    if try_one(one, folder, left_bytes):
                        filled[name] += 1
                        print(f"{filled.total()} of {fills}: {name}, full after {left_bytes:,} bytes", flush=True)
                    else:
                        most_bytes[name] = left_bytes
            except FindingError as finding:
                print(f"full disk: seed {seed}: {finding}")
                return 1
    print(f"{fills} times full, seed {seed}: all ended as undisturbed; {time.monotonic() - began_s:.0f} s")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", metavar="STEP", help="such as 'train'; may be given again")
    arguments = parser.parse_args()
    sys.exit(main(arguments.fills, arguments.seed, arguments.only))
