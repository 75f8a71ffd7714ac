"""Numbers: a version's report is computed from the lake's tables and from what the registry says of models."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache, cached_property
from typing import Any

import ibis.expr.types as ir
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from features.labels import Label
from features.snapshots import FAVOURITES, title
from models import descriptions, label_card, rules
from models.comparison import OTHERS, VALUES_MAX
from models.condition_words import say
from models.conditions import ConditionError, parse
from models.descriptions import cut
from models.lifecycle import STAGES
from models.promotion import RIVALS
from models.segments import Segment as KnownSegment
from models.segments import SegmentModel
from publish.changes import ENTERED, REASONS
from publish.report import differences, metrics
from publish.report.activity import HOURS, WEEKDAYS, measure_activity
from publish.report.changes import count_changes
from publish.report.content import (
    SUPPRESSED,
    TOP_USERS,
    Attribute,
    Bar,
    Breakdown,
    CalibrationBin,
    Changes,
    Compared,
    ComparedFeature,
    Comparison,
    Count,
    Difference,
    Driver,
    Estimate,
    Gain,
    Lineage,
    Metric,
    Model,
    Overlap,
    Overview,
    Propensity,
    Rate,
    Report,
    Rule,
    Segment,
    TopUser,
    TrendPoint,
)
from publish.report.groups import Counted, Groups, hide_segments
from publish.report.metrics import rounded, share
from publish.report.settings import USER_ID, ReportSettings
from publish.report.suggestions import suggest
from publish.report.suppression import Mask, hide_parts, is_small
from publish.report.users import list_users
from publish.versions import Version

EDGES = [round(i / 20, 2) for i in range(21)]
"""Of histograms of probabilities."""
PERCENT = 2
"""Digits of a share among users of a training, so that nobody counts in it."""
WEEKDAY_NAMES = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
ALL_OTHERS = "\0others"
"""Stands for rare values among the codes of a text column."""


@dataclass(frozen=True)
class Trained:
    """Hold what the registry says of the model that gave a version its scores of a label.

    `decision` is what its training logged as decision.json, `importance` of which feature moves its scores how much.
    """

    version: int
    trained_at: datetime
    serves_since: datetime | None
    decision: Mapping[str, Any]
    importance: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """Hold all that a report is made of.

    `earlier` are the versions before, `released` is RELEASED, `listed` what the destination `published` may have of it,
    `sessions` SESSIONS as known at as_of, `snapshot` SNAPSHOTS then, `changes` the CHANGES of this version at
    `published`. `discovered` is the model of segments, with the names that people gave; `trained` are models by label.
    """

    version: Version
    earlier: Sequence[Version]
    released: ir.Table
    listed: ir.Table
    sessions: ir.Table
    snapshot: ir.Table
    changes: ir.Table
    rejected: Mapping[str, int]
    discovered: SegmentModel | None
    trained: Mapping[str, Trained]
    labels: Mapping[str, Label]
    attributes: Sequence[str]
    settings: ReportSettings
    time_zone: str = "UTC"
    day_level: bool = False


def make_report(source: Source) -> tuple[Report, pa.Table]:
    """Compute a version's report, and the table of the users who may be on a list; see `publish.report.content`."""
    return _Maker(source).make()


class _Maker:
    """What parts of a report have in common: the users, in one order, and who is in which segment."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.k = source.settings.k
        self.personal = set(source.settings.personal)
        released = source.released.order_by("user_id").to_pyarrow()
        probabilities = [f"{label}_probability" for label in source.labels]
        self.users: pd.DataFrame = released.select(["user_id", "lifecycle_stage", *probabilities]).to_pandas()
        users = self.users
        snapshot: pd.DataFrame = source.snapshot.drop("as_of").to_pyarrow().to_pandas()
        self.snapshot = snapshot.set_index("user_id").reindex(users["user_id"]).reset_index()
        activity = measure_activity(source.sessions, source.version.as_of, source.time_zone, source.day_level)
        activity = activity.to_pyarrow().to_pandas().set_index("user_id").reindex(users["user_id"]).reset_index()
        times = ["first_seen_at", "last_seen_at"]
        self.activity = activity.fillna({name: 0 for name in activity if name not in ("user_id", *times)})
        names, named = source.version.manifest["segments"], source.version.manifest["rules"]
        members = np.zeros((len(names) + len(named), len(users)), dtype=bool)
        lists = released["rule_segments"].combine_chunks()
        for values, owners in (
            (released["segment_id"], np.arange(len(users))),
            (pc.list_flatten(lists), pc.list_parent_indices(lists).to_numpy()),
        ):
            codes = pc.index_in(values, pa.array([*names, *named], pa.string())).to_pandas()
            known = codes.notna().to_numpy()
            members[codes[known].astype(np.intp), owners[known]] = True
        self.groups = Groups(list(names), list(named), members, self.k)
        self.names = {**names, **{name: rule["title"] for name, rule in named.items()}}
        self.known = {one.segment_id: one for one in source.discovered.segments} if source.discovered else {}
        self.may_tell = cache(self._may_tell)

    def make(self) -> tuple[Report, pa.Table]:
        source, version, groups = self.source, self.source.version, self.groups
        listed = list_users(source.listed.to_pyarrow(), self.activity, self.snapshot, source.attributes, version)
        measured = metrics.measure(self.activity, groups, source.day_level)
        texts = {name: self._count_texts(name) for name in (*FAVOURITES, *source.attributes) if name in self.snapshot}
        breakdowns = self._breakdowns(texts)
        typical = differences.find(self.snapshot, groups, texts, self.may_tell, self.personal)
        active = self._active()
        all_changes, changes = self._changes()
        propensities = self._propensities()
        trend, all_trend = self._trend()
        top = self._top_users(listed)
        order = sorted(self.groups.ids, key=lambda name: (name in groups.named, -groups.sizes[name], name))
        segments = [
            self._segment(
                name, typical, measured, breakdowns, active, changes.get(name), propensities, trend[name], top[name]
            )
            for name in order
        ]
        report = Report(
            source=version.manifest["source"],
            version=version.version,
            as_of=version.as_of.astimezone(UTC),
            time_zone=source.time_zone,
            k=self.k,
            model_versions=version.manifest["models"],
            configuration=version.manifest["configuration"],
            attributes=[
                Attribute(name=name, title=title(name), personal=name in self.personal) for name in source.attributes
            ],
            user_ids_personal=USER_ID in self.personal,
            users_listed=len(listed),
            overview=self._overview(measured[None], breakdowns[None], all_trend, all_changes),
            segments=segments,
            comparison=Comparison(features=self._compare_features(order), overlap=self._overlap(order)),
            models=[self._model(label) for label in source.labels.values()],
            withheld=self._withheld(segments, len(listed)),
        )
        return report, listed

    # --- counts of users ---

    def _bars(
        self, values: Sequence[tuple[str | None, str]], counts: NDArray[np.int64], hidden: Mask, of_all: Counted
    ) -> list[Bar]:
        total, whole = int(counts.sum()), int(of_all.everyone.sum())
        return [
            Bar(
                value=value,
                label=label,
                count=_count(counts[i], hidden[i]),
                share=_share(counts[i], total, hidden[i]),
                share_of_all=_share(of_all.everyone[i], whole, of_all.everyone_hidden[i]),
            )
            for i, (value, label) in enumerate(values)
        ]

    def _breakdown(
        self,
        name: str,
        words: str,
        counted: Counted,
        values: Sequence[tuple[str | None, str]],
        of: str | None,
        sessions: bool = False,
    ) -> Breakdown:
        counts = counted.everyone if of is None else counted.segments[of]
        hidden = counted.everyone_hidden if of is None else counted.hidden[of]
        return Breakdown(
            name=name,
            title=words,
            counted="sessions" if sessions else "users",
            personal=name in self.personal,
            bars=self._bars(values, counts, hidden, counted),
        )

    def _count_texts(self, name: str) -> tuple[list[str | None], Counted]:
        """Count users by the values of a text column: the most frequent ones, all others together, and null.

        Values that too few have to be told of are among the others, with the next ones where these are too few still.
        """
        codes, values = pd.factorize(self.snapshot[name], sort=True)
        sizes = np.bincount(codes[codes >= 0], minlength=len(values))
        order = np.argsort(-sizes, kind="stable")
        kept = len(values) if len(values) <= VALUES_MAX else VALUES_MAX - 1
        kept = min(kept, int((sizes >= self.k).sum()))
        while kept and is_small(np.array([int(sizes[order[kept:]].sum())]), self.k).any():
            kept -= 1
        place = np.full(len(values) + 1, kept)
        place[order[:kept]] = np.arange(kept)
        place[-1] = kept + 1
        counted = self.groups.count_values(place[codes], kept + 2)
        return [*(str(values[i]) for i in order[:kept]), OTHERS, None], counted

    def _breakdowns(self, texts: Mapping[str, tuple[list[str | None], Counted]]) -> dict[str | None, list[Breakdown]]:
        """Count users and sessions by value, of all users (None) and of each segment that is shown."""
        found: dict[str | None, list[Breakdown]] = {name: [] for name in (None, *self.groups.shown)}
        times: list[tuple[str, str, list[str], tuple[str, ...]]] = [("weekday", "weekday", WEEKDAYS, WEEKDAY_NAMES)]
        if not self.source.day_level:
            times.insert(0, ("hour", "hour of the day", HOURS, tuple(f"{hour}:00" for hour in range(24))))
        by_time = [
            (name, words, self.groups.count(self.activity[columns].to_numpy(dtype=np.int64)), columns, labels)
            for name, words, columns, labels in times
        ]
        favourites = [name for name in texts if name in FAVOURITES]
        for of, breakdowns in found.items():
            breakdowns += [self._texts(name, *texts[name], of) for name in favourites]
            for name, words, counted, columns, labels in by_time:
                values = [(column.rpartition("_")[2], label) for column, label in zip(columns, labels, strict=True)]
                breakdowns.append(self._breakdown(name, words, counted, values, of, sessions=True))
            breakdowns += [self._texts(name, *texts[name], of) for name in texts if name not in FAVOURITES]
        return found

    def _texts(self, name: str, values: list[str | None], counted: Counted, of: str | None) -> Breakdown:
        labels = [*((value, cut(str(value))) for value in values[:-2]), (OTHERS, OTHERS), (None, "not known")]
        whole = self._breakdown(name, title(name), counted, labels, of)
        there = [bar for bar, count in zip(whole.bars, counted.everyone, strict=True) if count]
        return whole.model_copy(update={"bars": there})

    def _active(self) -> dict[str | None, tuple[Count, Count]]:
        """Count users who came in the last 7 and 28 days, of all users (None) and by segment."""
        last = self.activity["last_seen_at"]
        as_of = self.source.version.as_of
        in_7, in_28 = (((last >= as_of - timedelta(days=days)) & last.notna()).to_numpy() for days in (7, 28))
        counted = self.groups.count_values(np.select([in_7, in_28], [0, 1], 2), 3)
        month = self.groups.count_values((~in_28).astype(np.intp), 2)
        found: dict[str | None, tuple[Count, Count]] = {}
        for name in (None, *self.groups.shown):
            counts = counted.everyone if name is None else counted.segments[name]
            hidden, both = (one.everyone_hidden if name is None else one.hidden[name] for one in (counted, month))
            found[name] = _count(counts[0], hidden[0]), _count(counts[0] + counts[1], hidden[2] or both.any())
        return found

    def _overview(
        self, measured: list[Metric], breakdowns: list[Breakdown], trend: list[TrendPoint], changes: Changes | None
    ) -> Overview:
        active = self._active()[None]
        as_of, first, last = self.source.version.as_of, self.activity["first_seen_at"], self.activity["last_seen_at"]
        month = as_of - timedelta(days=28)
        is_active = (last >= month) & last.notna()
        is_new, is_lost = is_active & (first >= month), ~is_active & (last >= as_of - timedelta(days=56))
        visits = np.array([int(is_new.sum()), int((is_active & ~is_new).sum())])
        absent = np.array([int(is_lost.sum()), int((~is_active & ~is_lost).sum())])
        hidden = [hide_parts(parts, parts, self.k) | (active[1] == SUPPRESSED) for parts in (visits, absent)]
        stages = self.groups.count_values(
            pd.Index(STAGES).get_indexer(pd.Index(self.users["lifecycle_stage"])), len(STAGES)
        )
        labels = [(stage, stage.replace("_", " ")) for stage in STAGES]
        users = np.array([len(self.users)])
        return Overview(
            users=_count(users[0], is_small(users, self.k)[0]),
            sessions=_count(self.activity["session_count"].sum(), is_small(users, self.k)[0]),
            active_7d=active[0],
            active_28d=active[1],
            new_28d=_count(visits[0], hidden[0][0]),
            returning_28d=_count(visits[1], hidden[0][1]),
            lost_28d=_count(absent[0], hidden[1][0]),
            rejected_rows=dict(self.source.rejected),
            lifecycle=self._bars(labels, stages.everyone, stages.everyone_hidden, stages),
            metrics=measured,
            breakdowns=breakdowns,
            trend=trend,
            changes=changes,
        )

    # --- a segment ---

    def _segment(
        self,
        name: str,
        typical: Mapping[str, list[Difference]],
        measured: Mapping[str | None, list[Metric]],
        breakdowns: Mapping[str | None, list[Breakdown]],
        active: Mapping[str | None, tuple[Count, Count]],
        changes: Changes | None,
        propensities: Mapping[str, list[Propensity]],
        trend: list[TrendPoint],
        top: list[TopUser],
    ) -> Segment:
        size, everyone = self.groups.sizes[name], self.groups.user_count
        is_named = name in self.groups.named
        known = self.known.get(name)
        told = typical.get(name, [])
        is_shown = name in self.groups.shown
        users: Count = size if is_shown or not size else SUPPRESSED
        in_7d, in_28d = active.get(name, (users, users) if not size else (SUPPRESSED, SUPPRESSED))
        public = [differences.to_trait(one) for one in told if not one.personal]
        description = descriptions.summarise(public, others="everyone else") if is_shown else ""
        rule = self._rule(name, known)
        if is_named and rule:
            description = rule.words
        return Segment(
            segment_id=name,
            name=self.names[name],
            kind="named" if is_named else "discovered",
            description=description,
            users=users,
            share=_share(size, everyone, users == SUPPRESSED),
            active_7d=in_7d,
            active_28d=in_28d,
            trend=trend,
            typical=told,
            metrics=measured.get(name, []),
            breakdowns=breakdowns.get(name, []),
            propensities=propensities.get(name, []),
            changes=changes if is_shown else None,
            top_users=top if is_shown else [],
            rule=rule,
            stability=rounded(known.stability) if known else None,
            lineage=self._lineage(name),
            flags=list(known.flags) if known and is_shown else [],
            suggestions=suggest(name, told),
            withheld=None if is_shown else self._why_withheld(size),
        )

    def _why_withheld(self, size: int) -> str:
        if not size:
            return "nobody is in it"
        if size < self.k:
            return f"it has fewer than {self.k} users"
        if self.groups.user_count - size < self.k:
            return f"fewer than {self.k} users are not in it"
        return f"its number would give away that of a segment with fewer than {self.k} users"

    @cached_property
    def _thresholds(self) -> dict[str, dict[str, float | None]]:
        """Return what the percentiles in rules are among these users, by rule."""
        given = self.source.version.manifest["rules"].items()
        ready, _ = rules.prepare([rules.Rule(name, "", "", rule["condition"]) for name, rule in given], self.snapshot)
        return {
            one.rule.name: {key: None if value is None else rounded(value) for key, value in one.thresholds.items()}
            for one in ready
        }

    def _rule(self, name: str, known: KnownSegment | None) -> Rule | None:
        if name in self.groups.named:
            rule = self.source.version.manifest["rules"][name]
            words = rule.get("sentence") or _in_words(rule["condition"])
            nothing = {"precision": None, "recall": None, "coverage": None, "sample_size": None}
            return Rule(text=rule["condition"], words=words, thresholds=self._thresholds.get(name, {}), **nothing)
        if known is None or known.rule is None:
            return None
        rule = known.rule
        return Rule(
            text=rule.text,
            words=_in_words(rule.text),
            precision=round(rule.precision, PERCENT),
            recall=round(rule.recall, PERCENT),
            coverage=round(rule.coverage, PERCENT),
            sample_size=rule.sample_size,
            thresholds={},
        )

    def _lineage(self, name: str) -> Lineage | None:
        model = self.source.discovered
        if model is None or model.lineage is None:
            return None
        since = model.lineage.since.get(name)
        for event in model.lineage.events:
            if event.segment_id == name:
                return Lineage(
                    event=str(event),
                    kind=event.kind,
                    since=datetime.fromisoformat(since) if since else None,
                    from_ids=list(event.from_ids),
                    to_ids=list(event.to_ids),
                )
        return None

    def _top_users(self, listed: pa.Table) -> dict[str, list[TopUser]]:
        columns = ["user_id", "user_number", "session_count_28d", "last_seen_at", "segment_id", "rule_segments"]
        users = listed.select(columns).to_pandas()
        users = users.sort_values(
            ["session_count_28d", "last_seen_at", "user_id"], ascending=[False, False, True], na_position="last"
        )
        users = users[users["last_seen_at"].notna()]
        named = users[["rule_segments"]].explode("rule_segments")["rule_segments"]
        found = {}
        for name in self.groups.ids:
            is_named = name in self.groups.named
            own = users.loc[named.index[named == name]] if is_named else users[users["segment_id"] == name]
            found[name] = [
                TopUser(
                    user_id=row.user_id,
                    user_number=row.user_number,
                    session_count_28d=int(row.session_count_28d),
                    last_seen_at=row.last_seen_at.to_pydatetime(),
                )
                for row in own.head(TOP_USERS).itertuples()
            ]
        return found

    # --- versions ---

    def _trend(self) -> tuple[dict[str, list[TrendPoint]], list[TrendPoint]]:
        """Return each segment's size at this version and those before that say it, and that of all users."""
        versions = [one for one in (*self.source.earlier, self.source.version) if "sizes" in one.manifest]
        now: dict[str, Any] = {"users": self.groups.user_count, "segments": self.groups.sizes}
        trend: dict[str, list[TrendPoint]] = {name: [] for name in self.groups.ids}
        everyone: list[TrendPoint] = []
        for one in sorted(versions, key=lambda one: one.version):
            manifest = one.manifest
            sizes = now if one.version == self.source.version.version else manifest["sizes"]
            named = {name: sizes["segments"].get(name, 0) for name in manifest["rules"]}
            discovered = {name: sizes["segments"].get(name, 0) for name in manifest["segments"]}
            hidden = hide_segments(discovered, named, sizes["users"], self.k)
            at: dict[str, Any] = {"version": one.version, "as_of": one.as_of.astimezone(UTC)}
            is_small_version = bool(is_small(np.array([sizes["users"]]), self.k)[0])
            everyone.append(TrendPoint(users=_count(sizes["users"], is_small_version), share=None, **at))
            for name, size in {**discovered, **named}.items():
                if name in trend:
                    is_hidden = name in hidden or is_small_version
                    point = TrendPoint(
                        users=_count(size, is_hidden), share=_share(size, sizes["users"], is_hidden), **at
                    )
                    trend[name].append(point)
        return trend, everyone

    def _changes(self) -> tuple[Changes | None, dict[str, Changes]]:
        if not self.source.earlier:
            return None, {}
        before = max(self.source.earlier, key=lambda one: one.version)
        rows = self.source.changes.group_by(["segment_id", "change", "reason"]).agg(users=lambda t: t.count())
        counts: dict[str, dict[tuple[bool, str], int]] = {}
        for row in rows.to_pyarrow().to_pylist():
            counts.setdefault(row["segment_id"], {})[row["change"] == ENTERED, row["reason"]] = row["users"]
        return count_changes(counts, self.groups, REASONS, before.version, before.as_of.astimezone(UTC))

    # --- probabilities ---

    def _propensities(self) -> dict[str, list[Propensity]]:
        found: dict[str, list[Propensity]] = {name: [] for name in self.groups.shown}
        for label in self.source.labels.values():
            probability = self.users[f"{label.name}_probability"].to_numpy(dtype=np.float64)
            bins = np.minimum(np.floor(np.nan_to_num(probability, nan=0) * (len(EDGES) - 1)), len(EDGES) - 2)
            bins = np.where(np.isnan(probability), len(EDGES) - 1, bins).astype(np.intp)
            counted = self.groups.count_values(bins, len(EDGES))
            _, sums = self.groups.sum(
                np.column_stack([np.nan_to_num(probability), np.nan_to_num(probability) ** 2, ~np.isnan(probability)])
            )
            for name in self.groups.shown:
                found[name].append(
                    self._propensity(label, counted.segments[name], counted.hidden[name], sums[name], name)
                )
        return found

    def _propensity(
        self, label: Label, counts: NDArray[np.int64], hidden: Mask, sums: NDArray[np.float64], name: str
    ) -> Propensity:
        scored = int(counts[:-1].sum())
        trained = self.source.trained.get(label.name)
        tested = (trained.decision.get("calibration_by_segment") or {}).get(name, {}) if trained else {}
        withheld = self.source.version.manifest["withheld"].get(label.name)
        if trained is None:
            withheld = "no model serves"
        mean: Rate = None
        if hidden[-1] or is_small(np.array([scored]), self.k)[0]:
            mean = SUPPRESSED
        elif scored:
            value, squares = sums[0] / scored, sums[1] / scored
            half = metrics.Z * np.sqrt(max(squares - value**2, 0.0) / scored)
            mean = Estimate(value=rounded(value), low=rounded(max(value - half, 0)), high=rounded(min(value + half, 1)))
        return Propensity(
            label=label.name,
            title=label.name.replace("_", " "),
            scored=_count(scored, hidden[-1] or is_small(np.array([scored]), self.k)[0]),
            mean=mean,
            edges=EDGES if scored else [],
            histogram=[_count(count, is_hidden) for count, is_hidden in zip(counts, hidden, strict=True)][:-1]
            if scored
            else [],
            happened=_estimate(tested.get("base_rate"), PERCENT),
            predicted_off=_estimate(tested.get("ece"), PERCENT),
            withheld=withheld,
        )

    def _model(self, label: Label) -> Model:
        trained = self.source.trained.get(label.name)
        told: dict[str, Any] = {
            "label": label.name,
            "title": label.name.replace("_", " "),
            "kind": label.kind,
            "definition": label_card.define(label),
        }
        if trained is None:
            nothing: dict[str, Any] = dict.fromkeys(
                (
                    "version",
                    "trained_at",
                    "serves_since",
                    "tested_at",
                    "tested_users",
                    "base_rate",
                    "reason",
                    "withheld",
                )
            )
            return Model(metrics={}, gains=[], calibration=[], drivers=[], **told, **nothing)
        decision = trained.decision
        measured = (decision.get("metrics") or {}).get("model", {})
        tested = (decision.get("rows") or {}).get("test")
        known = {
            name: one
            for name, given in measured.items()
            if (one := _estimate(given)) and not _tells_few(name, tested, self.k)
        }
        gains = {who: one for who, given in (decision.get("gains") or {}).items() if (one := _estimate(given))}
        tested_at = decision.get("test_as_of")
        return Model(
            **told,
            version=trained.version,
            trained_at=trained.trained_at,
            serves_since=trained.serves_since,
            tested_at=datetime.fromisoformat(tested_at) if tested_at else None,
            tested_users=tested,
            base_rate=known.get("base_rate"),
            metrics=known,
            gains=[Gain(rival=who, title=RIVALS.get(who, who), gain=gain) for who, gain in gains.items()],
            calibration=self._calibration(decision.get("calibration") or []),
            drivers=[
                Driver(feature=name, title=title(name), share=rounded(part), personal=name in self.personal)
                for name, part in trained.importance.items()
            ],
            reason=decision.get("reason"),
            withheld=self.source.version.manifest["withheld"].get(label.name),
        )

    def _calibration(self, bins: Sequence[Mapping[str, Any]]) -> list[CalibrationBin]:
        """Return the bins; none where one of them counts too few whom it happened to, or did not."""
        counts = [round(one["happened"] * one["rows"]) for one in bins]
        both = np.array([*counts, *(one["rows"] - count for one, count in zip(bins, counts, strict=True))], dtype=int)
        if is_small(both, self.k).any():
            return []
        return [
            CalibrationBin(
                predicted=rounded(one["predicted"]),
                happened=Estimate(value=rounded(one["happened"]), low=rounded(one["low"]), high=rounded(one["high"])),
                users=one["rows"],
            )
            for one in bins
        ]

    # --- comparison ---

    def _may_tell(self, feature: str) -> Counted:
        """Count users by whether a feature is above 0, not above 0, or null."""
        values = self.snapshot[feature].to_numpy()
        known = np.isfinite(values)
        return self.groups.count_values(np.select([~known, values > 0], [2, 0], 1), 3)

    def _compare_features(self, order: Sequence[str]) -> list[ComparedFeature]:
        shown = [name for name in order if name in self.groups.shown]
        rows = {name: self.groups.rows(name) for name in shown}
        found = []
        for feature in map(str, self.snapshot.select_dtypes("float64")):
            values, counted = self.snapshot[feature].to_numpy(), self.may_tell(feature)
            everyone = _compared(values, counted.everyone_hidden[2], self.k)
            segments = {name: _compared(values[rows[name]], counted.hidden[name][2], self.k) for name in shown}
            found.append(ComparedFeature(name=feature, title=title(feature), everyone=everyone, segments=segments))
        return found

    def _overlap(self, order: Sequence[str]) -> list[Overlap]:
        """Count the users of named segments by discovered one; what a hidden segment has is hidden."""
        groups = self.groups
        if not groups.discovered:
            return []
        members = groups.members[: len(groups.discovered)]
        own = np.where(members.any(axis=0), members.argmax(axis=0), len(members))
        counted = groups.count_values(own, len(members) + 1)
        found = []
        for name in order:
            if name not in groups.named:
                continue
            is_shown = name in groups.shown
            cells: dict[str, Count] = {}
            for i, other in enumerate(groups.discovered):
                is_hidden = groups.sizes[name] > 0
                if is_shown:
                    is_hidden = bool(counted.hidden[name][i]) or (other not in groups.shown and groups.sizes[other] > 0)
                cells[other] = _count(counted.segments[name][i] if is_shown else 0, is_hidden)
            users = _count(groups.sizes[name], not is_shown and groups.sizes[name] > 0)
            found.append(Overlap(segment_id=name, users=users, discovered=cells))
        return found

    def _withheld(self, segments: Collection[Segment], listed: int) -> list[str]:
        notes = []
        if not self.groups.user_count:
            notes.append("There is nobody in this version.")
        if is_small(np.array([self.groups.user_count]), self.k)[0]:
            notes.append(f"There are fewer than {self.k} users, so nothing is counted.")
        if not self.groups.discovered:
            notes.append("No segments were discovered: see what `habitus train` says.")
        for label in self.source.labels.values():
            number = self.source.version.manifest["models"].get(label.name)
            if label.name not in self.source.trained and number is not None:
                notes.append(
                    f"The registry does not have the model of {label.name.replace('_', ' ')}, version {number}."
                )
            elif label.name not in self.source.trained:
                notes.append(f"No model of {label.name.replace('_', ' ')} serves: see what `habitus train` says.")
            elif why := self.source.version.manifest["withheld"].get(label.name):
                notes.append(f"Of {label.name.replace('_', ' ')} there are only ranks: {why}.")
        hidden = [one for one in segments if one.withheld and one.users == SUPPRESSED]
        notes += [f"{one.name} ({one.segment_id}) is not described: {one.withheld}." for one in hidden]
        if self.source.day_level:
            notes.append("The source has days, not times: there are no hours and no lengths of sessions.")
        if any("sizes" not in one.manifest for one in self.source.earlier):
            notes.append("Versions of before sizes were kept are not in the trends.")
        if listed < self.groups.user_count:
            notes.append("Lists have only users who consented and are not held out; counts are of all users.")
        return notes


def _compared(values: NDArray[np.float64], is_hidden: bool, k: int) -> Compared:
    known = values[np.isfinite(values)]
    if is_hidden or is_small(np.array([len(known), len(values)]), k).any():
        return Compared(median=SUPPRESSED, mean=SUPPRESSED, known=SUPPRESSED)
    if not len(known):
        return Compared(median=None, mean=None, known=0.0)
    return Compared(
        median=rounded(float(np.median(known))),
        mean=rounded(float(known.mean())),
        known=rounded(len(known) / len(values)),
    )


def _in_words(condition: str) -> str:
    try:
        return say(parse(condition))
    except ConditionError:  # of a version of Habitus with another language
        return condition


def _count(count: Any, is_hidden: Any) -> Count:
    return SUPPRESSED if is_hidden else int(count)


def _share(count: Any, total: int, is_hidden: Any) -> Rate:
    if is_hidden:
        return SUPPRESSED
    return share(int(count) / total, total) if total else None


def _estimate(given: Mapping[str, Any] | None, digits: int | None = None) -> Estimate | None:
    """Return a figure as trainings log it, rounded to so many decimals; None where it has no meaning."""
    if not given or given.get("value") is None:
        return None
    value, low, high = (
        None if given.get(side) is None else rounded(given[side]) if digits is None else round(given[side], digits)
        for side in ("value", "low", "high")
    )
    assert value is not None
    return Estimate(value=value, low=low, high=high)


def _tells_few(metric: str, users: int | None, k: int) -> bool:
    """Tell whether a metric is of the first per cents of so many users, who are too few."""
    first = re.fullmatch(r".*_(\d+)pct", metric)
    return first is not None and (users or 0) * int(first[1]) < 100 * k
