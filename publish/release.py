"""Release: a version is planned, held or made the present one, and then taken to each destination.

All that a destination gets is made of the lake's state by `release_for`. So what a killed process left undone is done
by the next publish, and a destination that was away gets the present version when it is back.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any

import ibis
import ibis.expr.types as ir
import pandas as pd

from features.lake import Lake
from features.table import materialize, stack
from models import names as naming
from models import rfm, rules
from models.conditions import parse
from models.staying import staying_days
from publish import versions
from publish.audiences import AUDIENCES, allow, count_refused, members_of, rows_for, segments_of
from publish.brake import BrakeSettings, Step, judge
from publish.changes import Causes, Otherwise, compare, without_names
from publish.destination import Delivery, Destination, DestinationError, DestinationSettings, Release, Sending
from publish.lock import LockedError, delivering_lock
from publish.manifest import describe
from publish.turnover import AUDIENCE, count_members, count_turnover, last_steps, steps
from publish.versions import Held, Version

Settings = Mapping[str, DestinationSettings]
"""The settings of each destination, by name."""


@dataclass(frozen=True)
class Candidate:
    """Hold assignments that would be the next version.

    `content` is a hash of them. The manifest has `source` (the configuration's name), `labels`, `models` (the version
    of each, by kind), `configuration` (a hash), `withheld`, `segments` (name by id, of discovered ones), `rules` (by
    name: title, condition and needs), `rules_off` (those whose features there are not), `definitions` (what features
    depend on beside events), `levels` (medians of features) and `rfm` (the lines of grades). Versions of before may
    lack the last four.
    """

    assignments: ir.Table
    as_of: datetime
    content: str
    manifest: Mapping[str, Any]


@dataclass(frozen=True)
class Policy:
    """Hold what may leave: destinations, the consents of some users as `consents.consents` has them, brake and salt.

    No name of a segment does that needs one of the `personal` attributes. Findings say instants in a zone.
    """

    destinations: Settings
    consents_of: Callable[[ir.Table], ir.Table]
    brake: BrakeSettings
    salt: str
    personal: Sequence[str] = ()
    time_zone: str = "UTC"


@dataclass(frozen=True)
class Outcome:
    """Say what is the present version, how many changes made it by destination, change and reason, and what was held.

    There is no version before the first release. `changes` are empty where it was the present one before. `abandoned`
    counts the memberships that stay at destinations which the configuration no longer has.
    """

    version: Version | None
    changes: pd.DataFrame
    held: Held | None
    abandoned: Mapping[str, int]


@dataclass(frozen=True)
class _Plan:
    version: Version
    assignments: ir.Table
    audiences: ir.Table
    changes: ir.Table


def publish(
    lake: Lake,
    candidate: Candidate,
    policy: Policy,
    otherwise: Callable[[Version], Otherwise | None],
    allowed_label: str | None = None,
    doubts: Sequence[str] = (),
) -> Outcome:
    """Make a candidate the present version, or hold it where the brake says so and nobody allowed its label.

    Where it is held, the present version stays, but for users who must not be there any more: they go at once.
    `otherwise` gives, for a version, what its model and rules would say now. `doubts` say what else speaks against
    assignments that are not those of the present version; they hold the first version as well.
    """
    before = versions.present(lake)
    plan = _plan(lake, before, candidate, policy, otherwise)
    abandoned = _abandoned(plan.audiences, policy.destinations)
    label = versions.label_of(candidate.as_of, candidate.content)
    if before is not None and plan.version.content == before.content:
        doubts = ()
    findings = [*doubts, *(_judge(lake, before, plan, policy) if before is not None else [])]
    if not findings or label == allowed_label:
        if before is None or plan.version.content != before.content or _is_new(lake, plan):
            before = versions.commit(lake, plan.version, plan.assignments, plan.audiences, plan.changes)
            counts = _count(plan.changes)
        else:
            counts = _count(plan.changes.limit(0))
        versions.unhold(lake, candidate.as_of)
        return Outcome(before, counts, None, abandoned)
    held = Held(label, candidate.as_of, candidate.content, findings, plan.version.manifest)
    if before is None:
        versions.hold(lake, held)
        return Outcome(None, _count(plan.changes.limit(0)), held, abandoned)
    stay = Candidate(versions.read_released(lake, before), before.as_of, before.content, before.manifest)
    less = _plan(lake, before, stay, policy, otherwise)
    counts = _count(less.changes.limit(0))
    if _is_new(lake, less):
        before = versions.commit(lake, less.version, less.assignments, less.audiences, less.changes)
        counts = _count(less.changes)
        judged = _judge(lake, before, _plan(lake, before, candidate, policy, otherwise), policy)
        held = replace(held, findings=[*doubts, *judged])
    versions.hold(lake, held)
    return Outcome(before, counts, held, abandoned)


def _plan(
    lake: Lake,
    before: Version | None,
    candidate: Candidate,
    policy: Policy,
    otherwise: Callable[[Version], Otherwise | None],
) -> _Plan:
    """Make what would be the next version's."""
    known = lake.read(AUDIENCES)
    users = candidate.assignments.select("user_id")
    allowed = allow(candidate.assignments, policy.consents_of(users), policy.destinations, policy.salt)
    others = known.filter(known.destination.notin(list(policy.destinations)))
    audiences = materialize(stack(allowed, others))
    selected = {name: settings.segments for name, settings in policy.destinations.items()}
    sizes = _sizes(candidate.assignments)
    manifest = {
        **candidate.manifest,
        "sizes": sizes,
        "destinations": {name: {"segments": of} for name, of in selected.items()},
    }
    version = Version(before.version + 1 if before else 1, candidate.as_of, candidate.content, manifest)
    causes = _causes(before, version, otherwise)
    changes = compare(known, audiences, causes, version.version, version.as_of)
    changes = materialize(without_names(changes, naming.marks(policy.personal)))  # those of before, of what is gone
    return _Plan(version, candidate.assignments, audiences, changes)


def _sizes(assignments: ir.Table) -> dict[str, Any]:
    """Count the users in all and by segment, discovered or named."""
    segments = assignments.select(segment_id=segments_of(assignments).unnest()).segment_id.value_counts(name="users")
    counts = segments.order_by("segment_id").to_pyarrow().to_pylist()
    return {"users": _rows(assignments), "segments": {row["segment_id"]: row["users"] for row in counts}}


def _causes(before: Version | None, now: Version, otherwise: Callable[[Version], Otherwise | None]) -> Causes:
    """Find what changed between two versions beside users."""
    if before is None:
        return Causes(_names(now.manifest), now.manifest["segments"])
    old, new = before.manifest, now.manifest
    discovered = {**old["segments"], **new["segments"]}
    names = {**_names(old), **_names(new)}
    if old.get("definitions", new["definitions"]) != new["definitions"]:
        redefined, asked = set(names), None
    else:
        redefined = set(discovered) if old["models"]["segments"] != new["models"]["segments"] else set()
        conditions = [_conditions(manifest) for manifest in (old, new)]
        redefined |= {
            name for name in names if name not in discovered and conditions[0].get(name) != conditions[1].get(name)
        }
        asked = otherwise(before) if redefined else None
    deselected = {}
    for name, section in new["destinations"].items():
        if name in old["destinations"]:
            was, is_now = (
                set(names if one is None else one)
                for one in (old["destinations"][name]["segments"], section["segments"])
            )
            deselected[name] = was ^ is_now
    return Causes(names, discovered, redefined, asked, deselected)


def _conditions(manifest: Mapping[str, Any]) -> dict[str, tuple[str, rfm.Lines | None]]:
    """Return the conditions of the rules of a version that there are the features for, and the lines they speak of."""
    off = manifest.get("rules_off", ())
    lines = rfm.lines_of(manifest)
    conditions = {name: rule["condition"] for name, rule in manifest["rules"].items() if name not in off}
    return {
        name: (condition, lines if rules.needs(condition, rfm.WORDS) else None)
        for name, condition in conditions.items()
    }


def _staying_days(manifest: Mapping[str, Any]) -> dict[str, float]:
    """Return how long users who do nothing go on meeting each rule of a version."""
    lines = rfm.lines_of(manifest)
    conditions = {name: parse(rule["condition"]) for name, rule in manifest["rules"].items()}
    return {name: staying_days(rfm.resolve(one, lines) if lines else one) for name, one in conditions.items()}


def _names(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the names of all segments of a version, discovered and named."""
    return {**manifest["segments"], **{name: rule["title"] for name, rule in manifest["rules"].items()}}


def _is_new(lake: Lake, plan: _Plan) -> bool:
    """Tell whether a plan's AUDIENCES differ from the present ones."""
    known = lake.read(AUDIENCES)
    sides = [(known, plan.audiences), (plan.audiences, known)]
    return any(_rows(one.difference(other.cast(one.schema()))) for one, other in sides)


def _rows(table: ir.Table) -> int:
    return int(table.count().to_pyarrow().as_py())


def _judge(lake: Lake, before: Version, plan: _Plan, policy: Policy) -> list[str]:
    """Ask the brake."""
    members = count_members(lake.read(AUDIENCES))
    names = {**_names(before.manifest), **_names(plan.version.manifest)}
    moved = count_turnover(plan.changes).merge(members.rename(columns={"members": "members_before"}), "left", AUDIENCE)
    moved = moved.fillna({"members_before": 0})
    moved["segment_name"] = [names.get(segment_id, segment_id) for segment_id in moved["segment_id"]]
    known = {*before.manifest["segments"], *_conditions(before.manifest)}
    moved = moved[moved["segment_id"].isin(known) & moved["destination"].isin(before.manifest["destinations"])]
    users = (_rows(versions.read_released(lake, before)), _rows(plan.assignments))
    recent = last_steps(versions.read_instants(lake))
    turnover = count_turnover(versions.read_changes_after(lake, recent))
    step = Step(before.as_of, plan.version.as_of, *users, moved, _levels(before.manifest, plan.version.manifest))
    return judge(
        step, steps(turnover, members, recent), _staying_days(plan.version.manifest), policy.brake, policy.time_zone
    )


def _levels(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Return the levels of two versions that both have."""
    before, now = (manifest.get("levels", {}) for manifest in (old, new))
    return {name: (before[name], value) for name, value in now.items() if value and before.get(name)}


def _count(changes: ir.Table) -> pd.DataFrame:
    """Count changes by destination, change and reason."""
    keys = ["destination", "change", "reason"]
    frame: pd.DataFrame = changes.group_by(keys).agg(users=lambda t: t.count()).order_by(keys).to_pandas()
    return frame


def _abandoned(audiences: ir.Table, destinations: Settings) -> dict[str, int]:
    """Count the memberships at destinations that are not configured any more."""
    others = audiences.filter(audiences.destination.notin(list(destinations)))
    counts = others.group_by("destination").agg(members=others.segments.length().sum()).to_pyarrow().to_pylist()
    return {row["destination"]: row["members"] for row in counts if row["members"]}


def release_for(
    lake: Lake, version: Version, destination: str, settings: DestinationSettings, contacts: ir.Table
) -> Release:
    """Return what one destination may have of the present version: all that any destination ever gets.

    `contacts` has user_id, email and phone of any users. A destination that needs no purpose gets none: nobody agreed
    to that.
    """
    audiences = lake.read(AUDIENCES)
    rows = materialize(rows_for(destination, versions.read_released(lake, version), audiences, settings))
    names = ibis.memtable(
        pd.DataFrame(list(_names(version.manifest).items()), columns=["segment_id", "segment_name"]).astype("str")
    )
    members = members_of(destination, audiences).left_join(names, "segment_id")
    members = members.mutate(segment_name=members.segment_name.fill_null(members.segment_id))
    reachable = contacts if settings.purposes else contacts.filter(ibis.literal(False))
    changes = versions.read_changes(lake, version.version)
    mine = changes.filter(changes.destination == destination)
    manifest = {
        "source": version.manifest["source"],
        "destination": destination,
        "version": version.version,
        "as_of": version.as_of.isoformat(),
        **describe(rows.to_pyarrow()),
        **{name: version.manifest[name] for name in ("withheld", "models", "configuration")},
        "refused": count_refused(destination, audiences),
    }
    return Release(
        destination,
        version.manifest["source"],
        version.version,
        version.as_of,
        rows,
        members.select("user_id", "segment_id", "segment_name"),
        reachable.semi_join(rows, "user_id").select("user_id", "email", "phone"),
        lambda since: mine.filter(mine.version > since),
        manifest,
    )


def queue(releases: Mapping[str, Release], destinations: Mapping[str, Destination]) -> dict[str, Delivery]:
    """Queue a version at the destinations that send, by name: while no other version is made, so that they keep order.

    One that fails leaves the others alone, here as in `deliver` and `send`.
    """
    return {
        name: _told(name, partial(destinations[name].deliver, release))
        for name, release in releases.items()
        if isinstance(destinations[name], Sending)
    }


def deliver(
    lake: Lake, releases: Mapping[str, Release], destinations: Mapping[str, Destination], wait_s: float
) -> dict[str, Delivery]:
    """Take a version to the destinations that do not send, by name; wait for another process there for so long.

    Other versions may be made meanwhile: where one was, it is that one that goes there.
    """

    def in_turn(destination: Destination, release: Release) -> Delivery:
        with delivering_lock(lake.folder, release.destination, wait_s):
            lake.renew()
            present = versions.present(lake)
            if present is not None and present.version > release.version:
                note = f"version {present.version} was published meanwhile, and goes there instead"
                return Delivery(release.destination, "unchanged", "", 0, note)
            return destination.deliver(release)

    return {
        name: _told(name, partial(in_turn, destinations[name], release))
        for name, release in releases.items()
        if not isinstance(destinations[name], Sending)
    }


def send(queued: Mapping[str, Delivery], destinations: Mapping[str, Destination]) -> dict[str, Delivery]:
    """Send what is queued at each destination, with nothing open or locked; return what became of it by name."""
    return {
        name: _told(name, destination.send) if isinstance(destination, Sending) and one.state != "failed" else one
        for name, one in queued.items()
        for destination in [destinations[name]]
    }


def _told(name: str, work: Callable[[], Delivery]) -> Delivery:
    try:
        return work()
    except (DestinationError, LockedError, OSError) as error:
        return Delivery(name, "failed", "", 0, str(error))
