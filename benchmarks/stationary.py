"""A shop where every week is as the one before, and what the brake does with its versions and with accidents in them.

Users come at a constant rate, are active for a while and stay away for good. Events, sessions, snapshots, rules,
segments and versions are the real ones; only the instants are simulated.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
import numpy as np
import pandas as pd
import pyarrow as pa
from ibis.backends.duckdb import Backend as DuckDB

from features.attributes import ATTRIBUTES
from features.lake import Lake
from features.sessions import sessionize
from features.snapshots import WINDOWS_DAYS, take_snapshots
from features.synthetic import EVENTS_PER_SESSION, SESSIONS_PER_USER_AND_DAY, Traffic, synthetic_events
from features.table import materialize, stack
from models import segments
from models.rules import Rule, RulesSettings, match, prepare
from models.segments import SegmentModel
from publish.assignments import ASSIGNMENTS
from publish.brake import LEVELS, BrakeSettings
from publish.changes import Otherwise
from publish.destination import DestinationSettings
from publish.release import Candidate, Policy, publish

GAP = timedelta(minutes=30)
LIFE_DAYS = 120
"""For so long a user may come; then another takes the place."""
WARM_UP_DAYS = 210
"""Of so many days is the history at the first version: as long as it takes until nobody's first days are missing."""
RHYTHMS = {"daily": 1, "weekly": 7}
"""The days from one version to the next."""
OCCASIONS = (1, 2, 3, 4, 8, 12, 16, 20)
"""At so many versions after the first one accidents happen, too: before the brake knows what is usual, and after."""
SEGMENTS_MAX = 6


@dataclass
class World:
    """Hold a stationary population, as snapshots of each of its days and, where asked, of all events twice."""

    engine: DuckDB
    places: int
    days: int
    seed: int = 0
    rules: Sequence[Rule] = field(default_factory=lambda: RulesSettings().rules)
    first_day = datetime(2024, 1, 1, tzinfo=UTC)

    @cached_property
    def events(self) -> ir.Table:
        """All events; the users of a place follow each other."""
        days = WARM_UP_DAYS + self.days
        count = round(self.places * SESSIONS_PER_USER_AND_DAY * EVENTS_PER_SESSION * days)
        drawn = synthetic_events(
            self.engine, Traffic(count, days, self.seed, self.places, self.first_day.date(), late_share=0)
        )
        place = drawn.user_id.substr(1).cast("int64")
        day = (drawn.occurred_at.epoch_seconds() - int(self.first_day.timestamp())) // 86_400
        follower = (day + place * 37 % LIFE_DAYS) // LIFE_DAYS
        return materialize(drawn.mutate(user_id=drawn.user_id + "-" + follower.cast("string")))

    @property
    def instants(self) -> list[datetime]:
        """An instant for each day, from the first version's on."""
        return [self.first_day + timedelta(days=WARM_UP_DAYS + day) for day in range(self.days)]

    def snapshots(self, instants: Sequence[datetime], *, doubled: bool = False) -> dict[datetime, pd.DataFrame]:
        """Return the snapshots at some instants, as if all events were there twice or not."""
        events = self.events
        if doubled:
            events = materialize(stack(events, events.mutate(event_id=events.event_id + "-again")))
        sessions = materialize(sessionize(events, GAP))
        nothing = ibis.memtable(pa.Table.from_pylist([], ATTRIBUTES.schema.to_pyarrow()))
        taken = take_snapshots(events, sessions, nothing, instants, gap=GAP, windows_days=WINDOWS_DAYS)
        frames = [rows.to_pandas() for _, rows in taken]
        return {as_of: one for frame in frames for as_of, one in frame.groupby("as_of", sort=True)}


def levels_of(snapshot: pd.DataFrame) -> dict[str, float]:
    """Return the levels that the brake looks at."""
    return {name: float(snapshot.loc[snapshot[name] > 0, name].median()) for name in LEVELS}


def find_segments(snapshot: pd.DataFrame) -> SegmentModel:
    """Find the segments that serve all the time."""
    fitted = segments.fit(snapshot, 3, SEGMENTS_MAX, seed=0)
    return segments.align(fitted, None, None, snapshot, 1, "2024-01-01T00:00:00+00:00", {})


@dataclass
class Shop:
    """Publish a world's versions one after the other to one destination, with the brake as it comes."""

    lake: Lake
    rules: Sequence[Rule]
    model: SegmentModel | None
    brake: BrakeSettings = field(default_factory=BrakeSettings)
    before: pd.Series | None = None

    def publish(self, as_of: datetime, snapshot: pd.DataFrame, rules: Sequence[Rule] | None = None) -> list[str]:
        """Publish a version; return why it is held, nothing where it is released."""
        rules = self.rules if rules is None else rules
        rows = self._assign(snapshot, rules)
        arrow = pa.Table.from_pylist([], ASSIGNMENTS.schema.to_pyarrow())
        columns = [
            pa.array(rows[name], dtype.type) if name in rows else pa.nulls(len(rows), dtype.type)
            for name, dtype in zip(arrow.column_names, arrow.schema, strict=True)
        ]
        table = self.lake.engine.create_table(
            ibis.util.gen_name("assignments"), pa.Table.from_arrays(columns, schema=arrow.schema), temp=True
        )
        manifest: dict[str, Any] = {
            **{"source": "stationary", "labels": ["churn", "conversion"], "configuration": "", "withheld": {}},
            **{"rules_off": [], "definitions": [], "levels": levels_of(snapshot)},
            "models": {"segments": 1 if self.model else None, "churn": None, "conversion": None},
            "segments": {one.segment_id: one.name for one in self.model.segments} if self.model else {},
            "rules": {rule.name: {"title": rule.title, "condition": rule.condition} for rule in rules},
        }
        content = f"{pd.util.hash_pandas_object(rows.astype(str)).sum():020d}"
        policy = Policy({"crm": DestinationSettings(purposes=[])}, _nobody, self.brake, "stationary")
        were = self._assign(snapshot, self.rules)
        otherwise = Otherwise(ibis.memtable(were.assign(segments=_all_segments(were))[["user_id", "segments"]]))
        outcome = publish(self.lake, Candidate(table, as_of, content, manifest), policy, lambda before: otherwise)
        self.lake.engine.drop_table(table.op().name)
        if outcome.held:
            return outcome.held.findings
        if self.model:
            self.before = rows.set_index("user_id")["segment_id"]
        return []

    def _assign(self, snapshot: pd.DataFrame, rules: Sequence[Rule]) -> pd.DataFrame:
        ready, _ = prepare(rules, snapshot)
        nothing = np.empty(len(snapshot), dtype=object)
        nothing[:] = [[] for _ in range(len(snapshot))]
        rows = pd.DataFrame({"user_id": snapshot["user_id"], "as_of": snapshot["as_of"]}).assign(
            rule_segments=snapshot["user_id"].map(match(snapshot, ready)),
            lifecycle_stage="active",
            churn_reasons=nothing,
            conversion_reasons=nothing,
            held_out_of=nothing,
            holdout=False,
            segment_id=None,
        )
        if self.model:
            previous = None if self.before is None else snapshot["user_id"].map(self.before)
            found = segments.assign(self.model, snapshot, previous, dwell_margin=0.1)
            rows["segment_id"] = found["segment_id"].to_numpy()
        return rows


def _nobody(users: ir.Table) -> ir.Table:
    return users.select("user_id", purpose=ibis.literal(""), granted=ibis.literal(False))


def _all_segments(rows: pd.DataFrame) -> pd.Series:
    discovered = rows["segment_id"].map(lambda one: [one] if isinstance(one, str) else [])
    return discovered + rows["rule_segments"]


def turn_round(rules: Sequence[Rule], number: int) -> list[Rule]:
    """Return rules of which one says the opposite."""
    turned = number % len(rules)
    return [
        replace(rule, condition=f"not ({rule.condition})", needs=()) if place == turned else rule
        for place, rule in enumerate(rules)
    ]


def halve(snapshot: pd.DataFrame, number: int) -> pd.DataFrame:
    """Return half of the users."""
    return snapshot.sample(frac=0.5, random_state=number).sort_index()


def shuffle(snapshot: pd.DataFrame, number: int) -> pd.DataFrame:
    """Return the users with each other's ids."""
    ids = np.random.default_rng(number).permutation(snapshot["user_id"])
    return snapshot.assign(user_id=ids).sort_values("user_id", ignore_index=True)


Accident = tuple[pd.DataFrame, Sequence[Rule]]
"""A snapshot and rules, one of which is not as it should be."""


def accidents(snapshot: pd.DataFrame, twice: pd.DataFrame, rules: Sequence[Rule], number: int) -> dict[str, Accident]:
    """Return what may happen to a version, the one of this number; `twice` is a snapshot of all events twice."""
    return {
        "half of the users are gone": (halve(snapshot, number), rules),
        "a rule is turned round": (snapshot, turn_round(rules, number)),
        "all events count twice": (twice, rules),
        "users have each other's ids": (shuffle(snapshot, number), rules),
    }


@dataclass
class Trial:
    """Hold how many versions were published, why some of them were held, and which accidents were."""

    versions: int = 0
    held: list[str] = field(default_factory=list)
    accidents: dict[str, list[bool]] = field(default_factory=dict)


def try_brake(world: World, rhythm: str, folder: Path) -> Trial:
    """Publish a world's versions in a rhythm, and on some occasions an accident before the version as it should be."""
    instants = world.instants[:: RHYTHMS[rhythm]]
    occasions = [number for number in OCCASIONS if number < len(instants)]
    snapshots = world.snapshots(instants)
    twice = world.snapshots([instants[number] for number in occasions], doubled=True)
    trial = Trial()
    with Lake(folder) as lake:
        shop = Shop(lake, world.rules, find_segments(snapshots[instants[0]]))
        for number, as_of in enumerate(instants):
            if number in occasions:
                for kind, (snapshot, rules) in accidents(snapshots[as_of], twice[as_of], world.rules, number).items():
                    trial.accidents.setdefault(kind, []).append(bool(shop.publish(as_of, snapshot, rules)))
            if findings := shop.publish(as_of, snapshots[as_of]):
                trial.held.append("; ".join(findings))
            trial.versions += 1
    return trial
