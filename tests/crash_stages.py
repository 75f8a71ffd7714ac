"""Kill stages at random moments, and run them again to the end: `make crash-stages`.

A shop is run once undisturbed, and what it is before each step is kept. From there each trial begins: a step is killed
(SIGKILL) at a random moment, with all that it started, then run again, and the shop must be what the undisturbed is.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages import STEPS, Step, attempt, make_shop, restore, state_of


class FindingError(Exception):
    """Say what differs from the undisturbed shop."""


@dataclass(frozen=True)
class Undisturbed:
    """Hold a shop before a step, how long the step takes, and what the shop is after it."""

    step: Step
    before: Path
    takes_s: float
    after: dict[str, Any]


def run_undisturbed(folder: Path, kept: Path, names: list[str]) -> list[Undisturbed]:
    """Run a shop through all steps up to the last that is named; keep it as it is before each of those."""
    make_shop(folder)
    known = []
    last = max(number for number, step in enumerate(STEPS) if step.name in names)
    for number, step in enumerate(STEPS[: last + 1]):
        if step.prepare is not None:
            step.prepare(folder)
        before = kept / str(number)
        if step.name in names:
            before.mkdir()
            restore(folder, before)
        said, takes_s = attempt(step, folder)
        if said != "done":
            raise FindingError(f"{step.name} undisturbed: {said}")
        print(f"{step.name} takes {takes_s:.1f} s", flush=True)
        if step.name in names:
            known.append(Undisturbed(step, before, takes_s, state_of(folder)))
    return known


def finish(one: Undisturbed, folder: Path) -> None:
    """Run a step that was disturbed to the end. Raises FindingError where that is not the undisturbed one."""
    said, _ = attempt(one.step, folder)
    if said != "done":
        raise FindingError(f"{one.step.name}, run again: {said}")
    found = state_of(folder)
    differing = sorted(part for part in one.after.keys() | found.keys() if one.after.get(part) != found.get(part))
    if differing:
        raise FindingError(f"{one.step.name} did not end as undisturbed: {', '.join(differing)}")


def main(kills: int, seed: int = 0, names: list[str] | None = None) -> int:
    """Kill so often, print what was found, and return the exit status."""
    draw, began_s = random.Random(seed), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="crash-") as within:
        folder, kept = Path(within, "shop"), Path(within, "kept")
        kept.mkdir()
        try:
            known = run_undisturbed(folder, kept, names or [step.name for step in STEPS])
            killed: Counter[str] = Counter()
            takes_s = {one.step.name: one.takes_s for one in known}
            while killed.total() < kills:
                one = known[killed.total() % len(known)]
                at = draw.random()
                restore(one.before, folder)
                said, took_s = attempt(one.step, folder, at * takes_s[one.step.name])
                if said == "killed":
                    finish(one, folder)
                    killed[one.step.name] += 1
                    print(f"{killed.total()} of {kills}: {one.step.name}, killed after {at:.0%}", flush=True)
                elif said != "done":
                    raise FindingError(f"{one.step.name}: {said}")
                else:  # the machine has less to do than it had
                    takes_s[one.step.name] = min(took_s, takes_s[one.step.name])
        except FindingError as finding:
            print(f"crash: seed {seed}: {finding}")
            return 1
    for one in known:
        print(f"  {killed[one.step.name]:4d} kills of {one.step.name}, which takes {one.takes_s:.1f} s")
    print(f"{kills} kills, seed {seed}: all ended as undisturbed; {time.monotonic() - began_s:.0f} s")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", metavar="STEP", help="such as 'train'; may be given again")
    arguments = parser.parse_args()
    sys.exit(main(arguments.kills, arguments.seed, arguments.only))
