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
    # What segments are chosen by.
    "what is told by chance counts": Mutant(
        "models/candidates.py",
        "TELLING_FREE + max(self.telling_low, 0.0)",
        "TELLING_FREE + max(self.telling or 0.0, 0.0)",
        ("test_candidates",),
    ),
    "means are learnt on the users that they are told about": Mutant(
        "models/telling.py",
        "told(one, outcomes_before, other, k) for name, (one, other)",
        "told(other, outcomes_then, other, k) for name, (one, other)",
        ("test_telling",),
    ),
    "outcomes know what was learned of later": Mutant(
        "features/outcomes.py",
        "events.filter(events.occurred_at < instant, events.ingested_at <= instant)",
        "events.filter(events.occurred_at < instant)",
        ("test_outcomes",),
    ),
    "the day of a single visit counts as much as a habit": Mutant(
        "models/spaces.py",
        "    known = _known(standardise, users)",
        "    known = np.ones(len(_known(standardise, users)))",
        ("test_spaces",),
    ),
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
    # Bounces.
    "a refund may be a bounce": Mutant(
        "features/sessions.py", " & (intervals.refund_count == 0)", "", ("test_sessions", "test_laws")
    ),
    "a session without page views tells of a bounce": Mutant(
        "features/sessions.py",
        'bounced=ibis.ifelse(with_page, bounced, ibis.null("boolean"))',
        "bounced=bounced",
        ("test_sessions", "test_laws"),
    ),
    "sessions without a page view count as engaged": Mutant(
        "features/snapshots.py",
        "sessions.engaged.count(where=with_page)",
        "sessions.engaged.count()",
        SNAPSHOTS,
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
    # Conflicts.
    "a commit is tried again on what another wrote": Mutant(
        "features/delta.py",
        "max_commit_retries=0",
        "max_commit_retries=15",
        ("test_conflicts",),
    ),
    "a table that another made is made anew": Mutant(
        "features/delta.py",
        'mode="overwrite" if name in self.versions else "error"',
        'mode="overwrite"',
        ("test_conflicts",),
    ),
    "a lake looks for versions at each question": Mutant(
        "features/delta.py",
        "        if self._found is None:\n",
        "        if True:\n",
        ("test_conflicts",),
    ),
    "a first ingest claims nothing": Mutant(
        "flows/ingest.py",
        "    lake.claim(FILES)\n    if known",
        "    if known",
        ("test_conflicts",),
    ),
    # Moved and copied projects.
    "a lake is written where it was": Mutant(
        "features/lake.py",
        "        if not is_here:\n",
        "        if False:\n",
        ("test_moving",),
    ),
    "MLflow is told where its files are": Mutant(
        "models/artifacts.py",
        'ADDRESS = "mlflow-artifacts:/"',
        'ADDRESS = Path("artifacts").absolute().as_uri() + "/"',
        ("test_moving",),
    ),
    "a folder's name is a pattern": Mutant(
        "features/addresses.py",
        "    return glob.escape(str(path))\n",
        "    return str(path)\n",
        ("test_addresses",),
    ),
    # Statements.
    "a share is told by its median": Mutant(
        "models/descriptions.py", 'options = ("mean",)', 'options = ("median",)', ("test_statements",)
    ),
    "a trend is told of those who are new": Mutant(
        "models/populations.py",
        ".where(tenure >= TREND_HISTORY_DAYS)",
        ".where(tenure >= 0)",
        ("test_statements",),
    ),
    "one visit is a habit": Mutant(
        "models/populations.py", "HABIT_SESSIONS_MIN = 3", "HABIT_SESSIONS_MIN = 1", ("test_statements",)
    ),
    "a name promises what holds of the median user": Mutant(
        "models/names.py",
        "value = trait.value if trait.of_most is None else trait.of_most",
        "value = trait.value",
        ("test_statements", "test_names"),
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
    "equal values are told apart by grades": Mutant(
        "models/rfm.py", 'reached, sign * values, side="right"', 'reached, sign * values, side="left"', ("test_rfm",)
    ),
    "lines of RFM are drawn over those who never bought": Mutant(
        "models/rfm.py", "users = snapshot[snapshot[recency].notna()]", "users = snapshot", ("test_rfm",)
    ),
    "who is masked keeps the degrees of belonging": Mutant(
        "publish/audiences.py", '"segment_strength", "segment_strengths", ', '"segment_strength", ', ("test_audiences",)
    ),
    "degrees of belonging are rounded up": Mutant("models/belonging.py", "np.floor(", "np.ceil(", ("test_belonging",)),
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
    # What leaves.
    "a deadline is for each read": Mutant(
        "publish/destinations/deadline.py",
        "left_s = self._until - time.monotonic()",
        "left_s = 30.0",
        ("test_webhook",),
    ),
    "a version goes to a destination that has a later one": Mutant(
        "publish/release.py",
        "present.version > release.version",
        "present.version < release.version",
        ("test_release",),
    ),
    "contacts go to destinations without a purpose": Mutant(
        "publish/release.py",
        "reachable = contacts if settings.purposes else contacts.filter(ibis.literal(False))",
        "reachable = contacts",
        ("test_release",),
    ),
    "formulas are escaped at the beginning of a text only": Mutant(
        "publish/formulas.py",
        'ESCAPES = ((MIDDLE, r"\\1\'\\2"), (BEGINNING, r"\'\\1"))',
        'ESCAPES = ((BEGINNING, r"\'\\1"),)',
        ("test_formulas",),
    ),
    # What ingest finds.
    "duplicates are rows that cannot be used": Mutant(
        "features/unusable.py",
        '    "amount_out_of_range",\n)',
        '    "amount_out_of_range",\n    "duplicate_id",\n)',
        ("test_unusable", "test_ingest_findings"),
    ),
    "a share of unusable rows that is the limit stops": Mutant(
        "features/unusable.py",
        "count / read <= share_max",
        "count / read < share_max",
        ("test_unusable", "test_ingest_findings"),
    ),
    "the last instant is one too late": Mutant(
        "features/values.py",
        "(instant < ibis.literal(END_OF_INSTANTS, TIME))",
        "(instant <= ibis.literal(END_OF_INSTANTS, TIME))",
        ("test_events", "test_values"),
    ),
    "sums of amounts overflow": Mutant(
        "features/sessions.py", "MICROS = dt.Decimal(38, 0)", "MICROS = dt.int64", ("test_ranges",)
    ),
    "a field that was text and is an object now is read as if it always had been one": Mutant(
        "features/sources.py",
        "structure = _joined(structure, _structure_of(other))",
        "structure = structure or _structure_of(other)",
        ("test_drift", "test_representations"),
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
    "an error keeps what it came from": Mutant(
        "flows/world.py",
        "raise in_discreet_words(error, config if isinstance(config, str) else None) from None",
        "raise in_discreet_words(error, config if isinstance(config, str) else None) from error",
        DISCRETION,
    ),
    "an error that nobody foresaw is let through": Mutant(
        "flows/world.py",
        "return unexpected(where(error)).with_traceback(error.__traceback__)",
        "return error",
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
    # Damage.
    "what is there of the same bytes is left as it is, broken or not": Mutant(
        "features/lake.py",
        "        _move(adds, staging, self.folder / table.name)\n        if not changed:",
        "        _move(fresh, staging, self.folder / table.name)\n        if not changed:",
        ("test_damage",),
    ),
    "an empty entry of a log is a commit of nothing": Mutant(
        "features/damage.py", "elif not file.stat().st_size:", "elif False:", ("test_damage",)
    ),
    "bytes that changed within a file are not looked for": Mutant(
        "features/damage.py", "if what is None and in_content and digest_of", "if False and digest_of", ("test_damage",)
    ),
    "an empty database of models is begun anew": Mutant(
        "models/store.py", "if not header.startswith(HEADER) or is_cut_off:", "if is_cut_off:", ("test_store",)
    ),
    "runs of another's lake are ended too": Mutant(
        "models/registry.py",
        "if run.data.tags.get(OWNER) == self._owner is not None",
        "if self._owner is not None",
        ("test_registry",),
    ),
    # Serving under attack.
    "a connection whose key is being answered goes, too": Mutant(
        "publish/connections.py",
        'return self.is_waiting or (self.is_answering and self.cycle.scope["state"].get("key") is None)',
        "return True",
        ("test_connections",),
    ),
    "a body that does not end has no limit of time": Mutant(
        "publish/connections.py",
        "is_late = waited_s > BODY_WITHIN_S and not self.flow.read_paused",
        "is_late = False",
        ("test_connections",),
    ),
    "a log that repeats everything": Mutant(
        "publish/repeats.py",
        "        if text in self._said:",
        "        if False:",
        ("test_connections",),
    ),
    "keys are those of the file that was opened first": Mutant(
        "publish/keys.py",
        "if self._reader is None or state != self._known_state:",
        "if self._reader is None:",
        ("test_keys",),
    ),
    "another program of the same machine is ours": Mutant(
        "publish/sites.py",
        'OWN = ("same-origin", "none")',
        'OWN = ("same-origin", "same-site", "none")',
        ("test_sites",),
    ),
    "nobody's sessions are asked for": Mutant(
        "publish/api.py",
        "whose = loaded.everything.table[USER_ID][row].as_py()",
        "whose = user_id",
        ("test_api",),
    ),
    "a broken manifest breaks all versions": Mutant(
        "publish/kept.py",
        "except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:",
        "except OSError as error:",
        ("test_broken_versions",),
    ),
    "a calibration by models that have learnt from its users": Mutant(
        "models/calibration.py",
        'others = rows[~rows["user_id"].isin(latest["user_id"].iloc[held_out])]',
        "others = rows",
        ("test_propensities",),
    ),
    "a challenger that has not learnt from the validation": Mutant(
        "models/promotion.py",
        "learned = refit(chosen, train, validation, label, seed)",
        "learned = chosen",
        ("test_promotion",),
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
