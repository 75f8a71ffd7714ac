"""Numbers: a version's report is computed from the lake's tables and from what the registry says of models."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, cached_property, partial

import ibis.expr.types as ir
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from features.labels import Label
from features.snapshots import FAVOURITES, title
from models import descriptions, populations, rfm, rules
from models.comparison import OTHERS, VALUES_MAX
from models.condition_words import in_words
from models.descriptions import cut
from models.lifecycle import STAGES
from models.segments import Segment as KnownSegment
from models.segments import SegmentModel
from publish.changes import ENTERED, REASONS
from publish.report import differences, metrics
from publish.report.activity import HOURS, WEEKDAYS, measure_activity
from publish.report.changes import count_changes
from publish.report.comparison import compare_features, count_overlap
from publish.report.content import (
    SUPPRESSED,
    TOP_USERS,
    Attribute,
    Bar,
    Breakdown,
    Changes,
    Comparison,
    Count,
    Difference,
    Lineage,
    Metric,
    Overview,
    Propensity,
    Report,
    Rule,
    Segment,
    TopUser,
    TrendPoint,
)
from publish.report.groups import Counted, Groups
from publish.report.metrics import PERCENT, rounded, shown_count, shown_share
from publish.report.propensities import Trained, describe_model, measure_propensities
from publish.report.settings import USER_ID, ReportSettings
from publish.report.suggestions import suggest
from publish.report.suppression import Mask, hide_parts, is_small
from publish.report.telling import describe_telling
from publish.report.trends import follow_sizes
from publish.report.users import list_users
from publish.versions import Version

WEEKDAY_NAMES = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
ALL_OTHERS = "\0others"
"""Stands for rare values among the codes of a text column."""


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
        self.may_tell = cache(partial(self._may_tell, self.snapshot))

    def make(self) -> tuple[Report, pa.Table]:
        source, version, groups = self.source, self.source.version, self.groups
        withheld = version.manifest["withheld"]
        listed = list_users(source.listed.to_pyarrow(), self.activity, self.snapshot, source.attributes, version)
        measured = metrics.measure(self.activity, groups, source.day_level)
        texts = {name: self._count_texts(name) for name in (*FAVOURITES, *source.attributes) if name in self.snapshot}
        breakdowns = self._breakdowns(texts)
        meaningful = populations.meaningful(self.snapshot)
        may_tell = cache(partial(self._may_tell, meaningful))
        typical = differences.find(meaningful, groups, texts, may_tell, self.personal)
        active = self._active()
        all_changes, changes = self._changes()
        propensities = measure_propensities(self.users, groups, source.labels, source.trained, withheld)
        trend, all_trend = follow_sizes(version, source.earlier, groups)
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
            comparison=Comparison(
                features=compare_features(self.snapshot, groups, order, self.may_tell),
                overlap=count_overlap(groups, order),
            ),
            models=[
                describe_model(
                    label, source.trained.get(name), version.manifest["withheld"].get(name), self.k, self.personal
                )
                for name, label in source.labels.items()
            ],
            tells=describe_telling(source.discovered, source.time_zone),
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
                count=shown_count(counts[i], hidden[i]),
                share=shown_share(counts[i], total, hidden[i]),
                share_of_all=shown_share(of_all.everyone[i], whole, of_all.everyone_hidden[i]),
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
            found[name] = shown_count(counts[0], hidden[0]), shown_count(counts[0] + counts[1], hidden[2] or both.any())
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
            users=shown_count(users[0], is_small(users, self.k)[0]),
            sessions=shown_count(self.activity["session_count"].sum(), is_small(users, self.k)[0]),
            active_7d=active[0],
            active_28d=active[1],
            new_28d=shown_count(visits[0], hidden[0][0]),
            returning_28d=shown_count(visits[1], hidden[0][1]),
            lost_28d=shown_count(absent[0], hidden[1][0]),
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
            share=shown_share(size, everyone, users == SUPPRESSED),
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
            suggestions=suggest(name, public),
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
        """Return what the percentiles and grades in rules are among these users, by rule."""
        given = self.source.version.manifest["rules"].items()
        asked = [rules.Rule(name, "", "", rule["condition"]) for name, rule in given]
        ready, _ = rules.prepare(asked, self.snapshot, rfm.lines_of(self.source.version.manifest))
        return {
            one.rule.name: {key: None if value is None else rounded(value) for key, value in one.thresholds.items()}
            for one in ready
        }

    def _rule(self, name: str, known: KnownSegment | None) -> Rule | None:
        if name in self.groups.named:
            rule = self.source.version.manifest["rules"][name]
            words = rule.get("sentence") or in_words(rule["condition"])
            nothing = {"precision": None, "recall": None, "coverage": None, "sample_size": None}
            # A line that hardly anybody reached is the value of one of them.
            lines = self._thresholds.get(name, {}) if name in self.groups.shown else {}
            return Rule(text=rule["condition"], words=words, thresholds=lines, **nothing)
        if known is None or known.rule is None:
            return None
        rule = known.rule
        return Rule(
            text=rule.text,
            words=in_words(rule.text),
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

    def _changes(self) -> tuple[Changes | None, dict[str, Changes]]:
        if not self.source.earlier:
            return None, {}
        before = max(self.source.earlier, key=lambda one: one.version)
        rows = self.source.changes.group_by(["segment_id", "change", "reason"]).agg(users=lambda t: t.count())
        counts: dict[str, dict[tuple[bool, str], int]] = {}
        for row in rows.to_pyarrow().to_pylist():
            counts.setdefault(row["segment_id"], {})[row["change"] == ENTERED, row["reason"]] = row["users"]
        return count_changes(counts, self.groups, REASONS, before.version, before.as_of.astimezone(UTC))

    def _may_tell(self, snapshot: pd.DataFrame, feature: str) -> Counted:
        """Count users by whether a feature is above 0, not above 0, or null; of a trend, also by a fall."""
        values = snapshot[feature].to_numpy()
        is_below = (values < 0) & (feature == populations.TREND)
        codes = np.select([~np.isfinite(values), values > 0, is_below], [2, 0, 3], 1)
        return self.groups.count_values(codes, 4 if feature == populations.TREND else 3)

    def _withheld(self, segments: Collection[Segment], listed: int) -> list[str]:
        notes = []
        if not self.groups.user_count:
            notes.append("There is nobody in this version.")
        if is_small(np.array([self.groups.user_count]), self.k)[0]:
            notes.append(f"There are fewer than {self.k} users, so nothing is counted.")
        if not self.groups.discovered:
            notes.append("No segments were discovered: see what `habitus train` says.")
        segments_version = self.source.version.manifest["models"].get("segments")
        if self.source.discovered is None and segments_version is not None:
            notes.append(f"The registry does not have the model of segments, version {segments_version}.")
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
            notes.append("The source has days, not times: there are no hours, no lengths of sessions and no bounces.")
        if any("sizes" not in one.manifest for one in self.source.earlier):
            notes.append("Versions of before sizes were kept are not in the trends.")
        if listed < self.groups.user_count:
            notes.append("Lists have only users who consented and are not held out; counts are of all users.")
        return notes
