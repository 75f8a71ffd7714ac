"""Plausible mistakes, made one at a time in a copy of the product: `make mutants` says by which test each is told.

A suite that is made faster has to tell them still. With --tree another clone is tried, such as one of an older commit.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

HOUSE = Path(__file__).parents[1]
COPIED = ("features", "models", "publish", "flows", "tests", "benchmarks", "examples", "docs", "notebooks")


class Mutant(NamedTuple):
    """A mistake: the module, what is right, what is wrong, and the files of tests that are to tell it."""

    module: str
    right: str
    wrong: str
    told_by: tuple[str, ...]


SESSIONS = ("test_increments", "test_sessions", "test_laws")
SNAPSHOTS = ("test_snapshots", "test_laws")
LABELS = ("test_labels", "test_laws")
CONDITIONS = ("test_conditions", "test_rules")
CHANGES = ("test_changes", "test_release")
BRAKE = ("test_brake", "test_turnover")
DISCRETION = ("test_discretion",)
MUTANTS = {
    # The five of sessionization.
    "what may go on at the border of a chunk is over": Mutant(
        "features/sessions.py",
        "us_between(chains.ended_at, ibis.literal(border, TIME)) <= us(gap)",
        "us_between(chains.ended_at, ibis.literal(border, TIME)) < us(gap)",
        SESSIONS,
    ),
    "an equal gap is too far to touch": Mutant(
        "features/increments.py",
        "us_between(sessions.ended_at, bounds.first_at) <= us(gap)",
        "us_between(sessions.ended_at, bounds.first_at) < us(gap)",
        SESSIONS,
    ),
    "the end before instead of the latest end so far": Mutant(
        "features/increments.py",
        "latest_end = intervals.ended_at.max().over(before)",
        "latest_end = intervals.ended_at.lag().over(so_far)",
        SESSIONS,
    ),
    "entry and exit page of equal times as they come": Mutant(
        "features/sessions.py",
        "order = sort_key(events.occurred_at, NULLS_LAST, events.event_id, NULLS_LAST)",
        "order = events.occurred_at",
        SESSIONS,
    ),
    "sessions that began before the border are not looked for": Mutant(
        "features/increments.py", "before=CAP + gap", "before=gap", SESSIONS
    ),
    # Increments.
    "intervals that overlap give their events twice": Mutant(
        "features/increments.py",
        "_hull(stack(disturbed, touched.select(*disturbed.columns)))",
        "stack(disturbed, touched.select(*disturbed.columns))",
        SESSIONS,
    ),
    "another gap is taken for the same": Mutant(
        "features/increments.py",
        '{**then, "events_version"',
        '{**then, "gap_us": now["gap_us"], "events_version"',
        SESSIONS,
    ),
    "sessions that follow one that the cap ended stay": Mutant(
        "features/increments.py", ">= us(CAP) - us(gap)", ">= us(CAP) + us(gap)", SESSIONS
    ),
    "an event that went leaves its session as it was": Mutant(
        "features/increments.py", "changed = stack(after_side, before_side)", "changed = after_side", SESSIONS
    ),
    # Snapshots.
    "an event at the instant itself counts": Mutant(
        "features/history.py",
        "(both.occurred_at < both.as_of) &",
        "(both.occurred_at <= both.as_of) &",
        SNAPSHOTS,
    ),
    "what was learnt of a microsecond later was known": Mutant(
        "features/history.py", "epoch_us(events.ingested_at) - 1)", "epoch_us(events.ingested_at) - 2)", SNAPSHOTS
    ),
    "a window ends before its last instant": Mutant(
        "features/snapshots.py", "sessions.age_days <= days", "sessions.age_days < days", SNAPSHOTS
    ),
    "the favourite is of events, and of equal ones the last": Mutant(
        "features/snapshots.py",
        '"fewer": -then.n, "value": then.value',
        '"fewer": then.n, "value": then.value',
        SNAPSHOTS,
    ),
    "an evening ends at eleven": Mutant(
        "features/snapshots.py", "_share_between(sessions, 18, 24)", "_share_between(sessions, 18, 23)", SNAPSHOTS
    ),
    "an item that comes again is new again": Mutant(
        "features/snapshots.py", "known_us=rows.known_us.min()", "known_us=rows.known_us.max()", SNAPSHOTS
    ),
    # Labels.
    "an event at the end of the window is inside": Mutant(
        "features/labels.py", "after_us < end_us)", "after_us <= end_us)", LABELS
    ),
    "a label exists a moment before its window is over": Mutant(
        "features/labels.py", "labels.known_us >= us(one.reach)", "labels.known_us >= us(one.reach) - 1", LABELS
    ),
    "the last of a user's events stands for all": Mutant(
        "features/labels.py", "occurred_at=acts.occurred_at.min()", "occurred_at=acts.occurred_at.max()", LABELS
    ),
    # Conditions.
    "what is not known is not equal": Mutant(
        "models/conditions.py",
        "return COMPARING[one.operator](column, values[0]) & known",
        "return COMPARING[one.operator](column, values[0])",
        CONDITIONS,
    ),
    "the upper end of between is outside": Mutant(
        "models/conditions.py", "(column <= values[1]) & known", "(column < values[1]) & known", CONDITIONS
    ),
    "or binds as and does": Mutant(
        "models/conditions.py",
        "return Or(tuple(parts)) if parts[1:]",
        "return And(tuple(parts)) if parts[1:]",
        CONDITIONS,
    ),
    # Changes.
    "the feed is replayed to its first change": Mutant(
        "publish/changes.py",
        "changes.change.argmax(changes.version)",
        "changes.change.argmin(changes.version)",
        CHANGES,
    ),
    "who withdrew is said to behave otherwise": Mutant(
        "publish/changes.py",
        '(rows[f"refused_{there}"].notnull(), rows[f"refused_{there}"])',
        '(rows[f"refused_{here}"].notnull(), rows[f"refused_{here}"])',
        CHANGES,
    ),
    "what the old rule says as well has changed by the rule": Mutant(
        "publish/changes.py", "== (change == LEFT)", "== (change == ENTERED)", CHANGES
    ),
    # The brake.
    "members of before are those of after once more": Mutant(
        "publish/turnover.py", 'audiences - moved["gained"]', 'audiences + moved["gained"]', BRAKE
    ),
    "what is usual for a day is usual for a week": Mutant("publish/brake.py", '* days / before["days"]', "* 1", BRAKE),
    "what another rule moved is usual from then on": Mutant(
        "publish/brake.py", 'change = before["change"] - before["redefined"]', 'change = before["change"]', BRAKE
    ),
    # Upgrades.
    "files known by the first fingerprint are read again": Mutant(
        "features/upgrades.py",
        "fingerprint=ibis.ifelse(same, now, files.fingerprint)",
        "fingerprint=files.fingerprint",
        ("test_upgrades",),
    ),
    "files of any mapping count as read by the present one": Mutant(
        "features/upgrades.py",
        "fingerprint=ibis.ifelse(same, now, files.fingerprint)",
        "fingerprint=ibis.literal(now)",
        ("test_upgrades",),
    ),
    "only the last days are upgraded": Mutant(
        "features/lake.py",
        "                adds += made\n",
        "                adds = made\n",
        ("test_upgrades",),
    ),
    # Suppression.
    "k users are too few to show": Mutant(
        "publish/report/suppression.py",
        "(users > 0) & (users < k)",
        "(users > 0) & (users <= k)",
        ("test_suppression",),
    ),
    "hidden parts may be small together": Mutant(
        "publish/report/suppression.py",
        "hidden.sum() > 1 and users",
        "hidden.sum() > 1 or users",
        ("test_suppression",),
    ),
    "cells that are hidden together may be small": Mutant(
        "publish/report/suppression.py",
        "while _hide_more(counts, users, hidden, k) or _hide_more(counts.T, users.T, hidden.T, k):",
        "while False:",
        ("test_suppression",),
    ),
    # Schedules.
    "the start of a run is in Prefect's kind of time": Mutant(
        "flows/instant.py",
        "datetime.fromisoformat(flow_run.scheduled_start_time.isoformat()).astimezone(UTC)",
        "flow_run.scheduled_start_time",
        ("test_stage",),
    ),
    "a mistake in code is tried again": Mutant(
        "flows/world.py",
        "isinstance(error, PASSING) or may_pass(error.__cause__)",
        "isinstance(error, Exception)",
        ("test_stage",),
    ),
    "an instant without offset is in UTC": Mutant(
        "flows/configuration.py",
        "instant.replace(tzinfo=ZoneInfo(time_zone))",
        'instant.replace(tzinfo=ZoneInfo("UTC"))',
        ("test_stage",),
    ),
    # Clear answers.
    "a number in quotes is a number": Mutant("features/sources.py", "strict=True", "strict=False", ("test_settings",)),
    "a text may hold a NUL": Mutant(
        "flows/configuration.py", "key := find_nul(given)", "key := None", ("test_clear_answers",)
    ),
    "a query that was interrupted failed": Mutant(
        "flows/world.py", "raise error.__cause__ from None", "pass", ("test_discretion",)
    ),
    "a rule is off for what another needs": Mutant(
        "models/rules.py",
        "for name in rule.needs if name in lacking",
        "for name in rule.features if name in lacking",
        ("test_rules",),
    ),
    # The instant of a run.
    "the instant: a local day has 24 hours": Mutant(
        "features/as_of.py",
        "as_of = start_of_day(last.day + DAY, time_zone)",
        "as_of = start_of_day(last.day, time_zone) + DAY",
        ("test_as_of",),
    ),
    "the instant: a clock that is ahead moves it": Mutant(
        "features/as_of.py", "if is_apart and _is_stray(", "if not is_apart and _is_stray(", ("test_as_of",)
    ),
    "the instant: on a schedule old data is as new as its end": Mutant(
        "features/as_of.py", "due = now if scheduled_at else as_of", "due = as_of", ("test_as_of",)
    ),
    "the instant: a first version is released though it is doubted": Mutant(
        "publish/release.py",
        "if not findings or label",
        "if not findings or before is None or label",
        ("test_release",),
    ),
    # What ingest finds.
    "duplicates are rows that cannot be used": Mutant(
        "features/unusable.py",
        '    "unparseable_number",\n)',
        '    "unparseable_number",\n    "duplicate_id",\n)',
        ("test_unusable", "test_ingest_findings"),
    ),
    "a share of unusable rows that is the limit stops": Mutant(
        "features/unusable.py",
        "count / read <= share_max",
        "count / read < share_max",
        ("test_unusable", "test_ingest_findings"),
    ),
    "a placeholder in capitals is an id": Mutant(
        "features/placeholders.py",
        "return user_id.strip().lower()",
        "return user_id.strip()",
        ("test_placeholders",),
    ),
    "a name that is mapped to itself is a mistake": Mutant(
        "features/event_names.py",
        "is_meant = standard or mapping.get(name) == name or",
        "is_meant = standard or",
        ("test_event_names",),
    ),
    "a macro is not looked into": Mutant(
        "features/expressions.py",
        'kind == "macro" and name not in within',
        "False",
        ("test_expressions",),
    ),
    # What may be said, and to whom.
    "an engine's value is repeated": Mutant(
        "features/discretion.py",
        "return NUMBER.sub(HIDDEN, hidden",
        "return (lambda _, words: words)(HIDDEN, hidden",
        DISCRETION,
    ),
    "an error keeps what it came from": Mutant("flows/world.py", "raise error from None", "raise error", DISCRETION),
    "an error that nobody foresaw is let through": Mutant(
        "flows/world.py",
        "raise unexpected(where(error)).with_traceback(error.__traceback__) from None",
        "raise",
        DISCRETION,
    ),
    "segments are described by what is personal": Mutant(
        "models/segments.py", 'users.drop(columns=[*personal], errors="ignore")', "users", ("test_segments",)
    ),
    "names of before stay": Mutant(
        "models/segments.py", "if naming.needs(one, personal)]", "if False]", ("test_segments",)
    ),
    "a reason says what is personal": Mutant("models/reasons.py", " | is_personal] = 0", "] = 0", ("test_reasons",)),
    "a condition on what is personal is told": Mutant(
        "models/rules.py", 'condition="")', "condition=rule.condition)", ("test_rules",)
    ),
}


TIERS = {
    "make test": (),
    "make test-slow": (
        "-m",
        "slow or law",
        "--deselect",
        "tests/test_increments.py::test_a_mistake_in_the_merge_is_told",
    ),
}
"""By tier, what pytest is told. A test that makes mistakes of its own finds the product otherwise than it expects."""


def told_by(mutant: Mutant, tree: Path) -> tuple[str, str] | None:
    """Return the tier and the test that is the first to fail with a mistake in a copy of the tree; None if all pass."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy = Path(folder)
        for name in COPIED:
            shutil.copytree(tree / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "prefect.yaml"):
            shutil.copy(tree / name, copy)
        module = copy / mutant.module
        source = module.read_text()
        if source.count(mutant.right) != 1:
            raise SystemExit(f"{mutant.module} has {mutant.right!r} {source.count(mutant.right)} times, not once")
        module.write_text(source.replace(mutant.right, mutant.wrong))
        for tier, options in TIERS.items():
            if test := first_that_fails(copy, [*options, *(f"tests/{name}.py" for name in mutant.told_by)]):
                return tier, test
    return None


def first_that_fails(tree: Path, options: list[str]) -> str | None:
    """Return the first test of a tree that fails."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *options]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    found = re.search(r"^(?:FAILED|ERROR) tests/(\S+)", done.stdout, re.MULTILINE)
    if found is None:
        raise SystemExit(done.stdout + done.stderr)
    return found[1]


def main(
    tree: Annotated[Path, typer.Option(help="The clone in which mistakes are made.")] = HOUSE,
    only: Annotated[str, typer.Option(help="Mistakes with these words.")] = "",
) -> None:
    """Make each mistake, and say which test tells it; end with status 1 where one is not told."""
    chosen = {name: mutant for name, mutant in MUTANTS.items() if only in name}
    tiers: Counter[str] = Counter()
    for number, (name, mutant) in enumerate(chosen.items(), start=1):
        tier, test = told_by(mutant, tree) or ("nothing", "NOT TOLD")
        tiers[tier] += 1
        print(f"{number:2}/{len(chosen)}  {name}: {test}, by {tier}", flush=True)
    print(f"Of {len(chosen)} mistakes are told " + ", ".join(f"{count} by {tier}" for tier, count in tiers.items()))
    raise typer.Exit(1 if tiers["nothing"] else 0)


if __name__ == "__main__":
    typer.run(main)
