"""Segments that the users' behaviour itself suggests: found, judged, named, and kept the same over time.

A *cluster* is a fit's arbitrary index, a *segment* what it is called in public: the segment at position i of
`SegmentModel.segments` is cluster i of the pipeline.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.pipeline import Pipeline

from models import clusters, descriptions, lineage, rfm, segment_rules, spaces, telling
from models import names as naming
from models.belonging import strengths
from models.candidates import SHARE_MIN, STABILITY_MIN, Candidate
from models.clusters import NotEnoughUsers
from models.descriptions import Trait
from models.dwell import stay
from models.lineage import Lineage
from models.names import Named
from models.rfm import Lines
from models.segment_rules import SegmentRule
from models.telling import Past

__all__ = [
    "NotEnoughUsers",
    "Segment",
    "SegmentModel",
    "align",
    "assign",
    "describe",
    "fit",
    "follow",
    "keep_names",
    "profiles",
    "renamed",
    "without",
]

TRAITS_SHOWN = 6


@dataclass(frozen=True)
class Segment:
    """A segment at the time of the fit: `size` in users, `share` and `stability` from 0 to 1.

    `summary` and `flags` are in words; `named_by` has the traits that the name was made of. The rule is None where
    there is nothing to tell by.
    """

    segment_id: str
    name: str
    size: int
    share: float
    stability: float
    typical: tuple[Trait, ...]
    summary: str = ""
    rule: SegmentRule | None = None
    flags: tuple[str, ...] = ()
    named_by: tuple[Trait, ...] = ()

    @classmethod
    def from_dict(cls, told: dict[str, Any]) -> "Segment":
        """Return the segment that `asdict` told; what was not yet known when it was stored has its default.

        The summary of an older version is said anew: it told "all" of medians.
        """
        traits = {name: tuple(Trait(**trait) for trait in told.get(name, ())) for name in ("typical", "named_by")}
        rule = SegmentRule(**told["rule"]) if told.get("rule") else None
        if any("of_most" not in trait for trait in told.get("typical", ())):  # its summary took medians for shares
            told = told | {"summary": descriptions.summarise(traits["typical"], traits["named_by"])}
        return cls(**(told | traits | {"rule": rule, "flags": tuple(told.get("flags", ()))}))


@dataclass(frozen=True)
class SegmentModel:
    """A fitted pipeline with its segments; `next_number` is the first number no segment ever had.

    `chosen` tells how the clusters were found, among which `candidates`; `doubt` says why they are not to be relied on.
    `lineage` says what became of the segments of the model before; None for a model that was not aligned. `tells` is
    what segments that were found in the same way told of the last past snapshot's users, as `telling.measure` has it;
    None where no outcomes were complete. `rfm` are the lines of that training; None where nobody could be graded.
    """

    pipeline: Pipeline
    segments: tuple[Segment, ...]
    next_number: int
    chosen: Candidate | None = None
    candidates: tuple[Candidate, ...] = ()
    doubt: str | None = None
    lineage: Lineage | None = None
    tells: dict[str, Any] | None = None
    rfm: Lines | None = None

    @property
    def ids(self) -> list[str]:
        """Return the segments' ids, in the clusters' order."""
        return [segment.segment_id for segment in self.segments]

    @property
    def features(self) -> list[str]:
        """Return the features that the segments are made of, in the pipeline's order."""
        return spaces.columns_of(self.pipeline)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the pipeline, ready for JSON."""
        return {
            "segments": [asdict(segment) for segment in self.segments],
            "next_number": self.next_number,
            "chosen": asdict(self.chosen) if self.chosen else None,
            "candidates": [asdict(candidate) for candidate in self.candidates],
            "doubt": self.doubt,
            "lineage": None if self.lineage is None else self.lineage.to_dict(),
            "tells": self.tells,
            "rfm": None if self.rfm is None else self.rfm.to_dict(),
        }

    @classmethod
    def from_dict(cls, pipeline: Pipeline, metadata: dict[str, Any]) -> "SegmentModel":
        """Return the model that `to_dict` described, around its pipeline; what older versions do not tell is empty."""
        segments = tuple(Segment.from_dict(segment) for segment in metadata["segments"])
        candidates = tuple(Candidate.from_dict(told) for told in metadata.get("candidates", ()))
        chosen = Candidate.from_dict(metadata["chosen"]) if metadata.get("chosen") else None
        known = Lineage.from_dict(metadata["lineage"]) if metadata.get("lineage") else None
        return cls(
            pipeline,
            segments,
            metadata["next_number"],
            chosen,
            candidates,
            metadata.get("doubt"),
            known,
            metadata.get("tells"),
            rfm.lines_of(metadata),
        )


def fit(
    snapshot: pd.DataFrame,
    k_min: int,
    k_max: int,
    seed: int,
    *,
    share_min: float = SHARE_MIN,
    stability_min: float = STABILITY_MIN,
    champion: "SegmentModel | None" = None,
    personal: Collection[str] = (),
    past: Sequence[Past] = (),
) -> SegmentModel:
    """Find the segments of one snapshot, by k-means on the float64 features.

    Counts, durations and amounts are compressed by the inverse hyperbolic sine, a logarithm that also takes 0
    and refunds; all features are standardised and cut at three deviations. A null is then filled with 0, the
    average, so that what does not apply to a user pulls nowhere; that it does not apply is a feature of its own. Of one
    quantity over several windows only the longest counts, of two features that correlate by more than 0.9 only the
    first, and none that goes with no other and has but one heap. What is left is projected on principal components with
    90 % of its variance.

    That is the space of behaviour. `past` are earlier snapshots with what their users did, the oldest first, of which
    each one's outcomes are complete before the next begins; from them two more spaces are made, in which counts what
    tells users' outcomes (`models.spaces`). No outcome of the snapshot itself is needed.

    Candidates in all spaces, with `k_min` (at least 2) to `k_max` clusters, are judged by separation (the silhouette
    against that of one heap) times stability (how alike refits to bootstraps are) times, as far as there is a past,
    steadiness and telling: whether the same way of finding clusters, at the last past snapshot, would have put today's
    users together alike, and how much of what came then it would have told. Who changes the segment costs, too; see
    `models.candidates`. Not eligible are those of a stability under `stability_min`, with a cluster that refits lose,
    or with one of fewer users than the share `share_min`; that tell nothing and are hardly more separate than one
    heap; and that tell much less than others. The fewest clusters within 5 % of the best are chosen, those of the
    `champion` first. If none is eligible, the model has a `doubt`.

    What is said of segments needs none of the `personal` attributes, since names and summaries go everywhere.

    The result depends neither on the order of the rows nor on the number of cores. Ids are new, S01 being the largest
    segment; `lineage.align` brings back those that are known.

    Raises NotEnoughUsers with fewer than 10 users per segment, or fewer different users than segments.
    """
    users = snapshot.sort_values("user_id", ignore_index=True)
    found = clusters.find(
        users,
        k_min,
        k_max,
        seed,
        share_min=share_min,
        stability_min=stability_min,
        incumbent=None if champion is None else _incumbent(champion, users),
        past=past,
    )
    k = found.chosen.k
    typical = descriptions.traits(users.drop(columns=[*personal], errors="ignore"), found.of_users, k)
    rules = segment_rules.find(users[spaces.columns_of(found.pipeline)], found.of_users, k)
    sizes = np.bincount(found.of_users, minlength=k)
    numbers = numbered(sizes, first=1)
    named = naming.names(typical, sizes)
    segments = tuple(
        Segment(
            segment_id=numbers[i],
            name=named[i].name,
            size=int(sizes[i]),
            share=float(sizes[i] / len(users)),
            stability=found.chosen.jaccard[i],
            typical=tuple(typical[i]),
            summary=descriptions.summarise(typical[i], named[i].by),
            rule=rules[i],
            flags=descriptions.flags(int(sizes[i]), float(sizes[i] / len(users)), typical[i]),
            named_by=named[i].by,
        )
        for i in range(k)
    )
    then = found.then
    return SegmentModel(
        found.pipeline,
        segments,
        k + 1,
        found.chosen,
        found.candidates,
        found.doubt,
        tells=None if then is None else telling.measure(partial(clusters.clusters_of, then), k, past),
        rfm=rfm.fit(snapshot),
    )


def _incumbent(model: SegmentModel, users: pd.DataFrame) -> clusters.Incumbent:
    own = pd.Index(assign(model, users)["segment_id"])
    of_users = pd.Index(model.ids).get_indexer(own)
    space = "behaviour" if model.chosen is None else model.chosen.space
    return clusters.Incumbent(clusters.method_of(model.pipeline), of_users, space)


def align(
    model: SegmentModel,
    old: SegmentModel | None,
    before: pd.DataFrame | None,
    now: pd.DataFrame,
    next_number: int,
    since: str,
    given: Mapping[str, str],
) -> SegmentModel:
    """Give a new model's segments the ids under which they are known, and say what became of the old ones.

    `old` is the model that serves, None at the first training; `before` is the snapshot that it was trained on, None
    where that is gone, and `now` the new model's, of the instant `since`. The segments that `lineage.match` finds among
    the old ones have their ids; the others get fresh ones, the largest first, from `next_number` on, which no version
    may have used: an id is never used twice. `given` are the names that people gave, by id; see `renamed`.
    """
    if old is None:
        born = renamed(_with_ids(model, {}, next_number), given)
        names = {segment.segment_id: segment.name for segment in born.segments}
        events = tuple(lineage.Event(one, names[one], "born", (), (one,)) for one in sorted(names))
        return replace(born, lineage=Lineage(events, (), dict.fromkeys(sorted(names), since)))
    in_now = _compare(model, old, now)
    in_before = None if before is None else _compare(model, old, before)
    ids = lineage.match(in_now if in_before is None else in_before, in_now)
    aligned = renamed(keep_names(_with_ids(model, ids, next_number), old, given.values()), given)
    for counts in (in_now, in_before):
        if counts is not None:
            counts.index = pd.Index(aligned.ids)
    sizes_before = pd.Series({segment.segment_id: segment.size for segment in old.segments})
    if in_before is not None:
        sizes_before = in_before.sum(axis=0)
    names = {segment.segment_id: segment.name for segment in (*old.segments, *aligned.segments)}
    fresh = {segment_id: since for segment_id in in_now.index if segment_id not in in_now.columns}
    earlier = old.lineage.since if old.lineage else {}  # unknown of a model from before there were lineages
    return replace(
        aligned,
        lineage=Lineage(
            lineage.explain(in_before, in_now, sizes_before, names),
            lineage.change_sizes(in_now, sizes_before, names),
            fresh | {segment_id: earlier[segment_id] for segment_id in in_now.index if segment_id in earlier},
            lineage.as_dict(in_now),
            None if in_before is None else lineage.as_dict(in_before),
        ),
    )


def _with_ids(model: SegmentModel, known: Mapping[str, str], next_number: int) -> SegmentModel:
    """Put known ids in the place of a fit's, and fresh ones where none is known."""
    fresh = [segment for segment in model.segments if segment.segment_id not in known]
    numbers = numbered([segment.size for segment in fresh], first=next_number)
    ids = {**known, **{segment.segment_id: number for segment, number in zip(fresh, numbers, strict=True)}}
    segments = tuple(replace(segment, segment_id=ids[segment.segment_id]) for segment in model.segments)
    return replace(model, segments=segments, next_number=next_number + len(fresh))


def _compare(new: SegmentModel, old: SegmentModel, users: pd.DataFrame) -> pd.DataFrame:
    in_new, in_old = (assign(model, users)["segment_id"] for model in (new, old))
    return lineage.overlap(in_new, in_old, new.ids, old.ids)


def renamed(model: SegmentModel, given: Mapping[str, str]) -> SegmentModel:
    """Return a model whose segments have the names that people gave to their ids.

    An automatic name that is given to another segment of the model, or was given to one that is gone, is told apart
    by its id.
    """
    taken = {name.casefold(): segment_id for segment_id, name in given.items()}

    def name_of(segment: Segment) -> str:
        name = given.get(segment.segment_id, segment.name)
        is_free = taken.get(name.casefold(), segment.segment_id) == segment.segment_id
        return name if is_free else f"{name} ({segment.segment_id})"

    return replace(model, segments=tuple(replace(segment, name=name_of(segment)) for segment in model.segments))


def without(model: SegmentModel, personal: Collection[str]) -> SegmentModel:
    """Return a model, which may be of before some attributes were personal, with words that need none of these.

    Names, summaries and flags that need one are made again of the other traits; in the lineage, an id stands for the
    name of a segment that is gone.
    """
    typical = [tuple(one for one in segment.typical if one.feature not in personal) for segment in model.segments]
    named = [Named(segment.name, segment.named_by) for segment in model.segments]
    wrong = [i for i, one in enumerate(named) if naming.needs(one, personal)]
    taken = [one.name for i, one in enumerate(named) if i not in wrong]
    sizes = [model.segments[i].size for i in wrong]
    for i, name in zip(wrong, naming.names([typical[i] for i in wrong], sizes, taken=taken), strict=True):
        named[i] = name
    segments = tuple(
        segment
        if i not in wrong and told == segment.typical
        else replace(
            segment,
            name=name.name,
            named_by=name.by,
            typical=told,
            summary=descriptions.summarise(told, name.by),
            flags=descriptions.flags(segment.size, segment.share, told),
        )
        for i, (segment, told, name) in enumerate(zip(model.segments, typical, named, strict=True))
    )
    names = {segment.segment_id: segment.name for segment in segments}

    def name_of(one: lineage.Event | lineage.SizeChange) -> str:
        return names.get(one.segment_id, one.segment_id) if naming.needs(Named(one.name, ()), personal) else one.name

    told_lineage = model.lineage and replace(
        model.lineage,
        events=tuple(replace(one, name=name_of(one)) for one in model.lineage.events),
        size_changes=tuple(replace(one, name=name_of(one)) for one in model.lineage.size_changes),
    )
    return replace(model, segments=segments, lineage=told_lineage)


def assign(
    model: SegmentModel, snapshot: pd.DataFrame, previous: pd.Series | None = None, dwell_margin: float = 0
) -> pd.DataFrame:
    """Assign every user of a snapshot to the nearest segment, each for itself.

    `previous` has the segment_id that each user had before, in the snapshot's order; null, or an id that there is no
    more, for none. There a user stays unless the nearest segment is nearer by the share `dwell_margin`; see
    `models.dwell.stay`.

    Returns one row per user in the snapshot's order: user_id, segment_id, segment_name, segment_strength,
    segment_strengths (see `models.belonging`) and runner_up_segment_id, the nearest of the other segments. The strength
    is 1 - d1 / d2 with the distances to the own segment's centre and to the runner-up's: 1 at the centre, 0 on the
    border between two. It is 0, too, of a user who only stays where he was, whose runner-up is nearer.
    """
    distances = clusters.distances(model.pipeline[:-1].transform(snapshot), model.pipeline[-1])
    ids = np.array(model.ids)
    names = np.array([segment.name for segment in model.segments])
    stayed = np.full(len(snapshot), -1) if previous is None else pd.Index(ids).get_indexer(previous)
    own = stay(distances, stayed, dwell_margin)
    order = np.argsort(distances, axis=1, kind="stable")[:, :2]
    other = np.where(order[:, 0] == own, order[:, 1], order[:, 0])
    to_own, to_other = (np.take_along_axis(distances, one[:, None], axis=1)[:, 0] for one in (own, other))
    ratio = np.divide(to_own, to_other, out=np.ones_like(to_own), where=to_other > 0)
    return pd.DataFrame(
        {
            "user_id": snapshot["user_id"].to_numpy(),
            "segment_id": ids[own],
            "segment_name": names[own],
            "segment_strength": np.maximum(1 - ratio, 0),
            "segment_strengths": strengths(distances, model.ids, clusters.method_of(model.pipeline)),
            "runner_up_segment_id": ids[other],
        }
    )


def follow(model: SegmentModel, snapshots: Sequence[pd.DataFrame], dwell_margin: float) -> pd.DataFrame:
    """Assign the users of snapshots that follow one another, each with what the one before said.

    Returns a row per user and a column per snapshot, of segment ids; null where a user is not in the snapshot.
    """
    found: list[pd.Series] = []
    for users in snapshots:
        previous = users["user_id"].map(found[-1]) if found else None
        assigned = assign(model, users, previous, dwell_margin)
        found.append(assigned.set_index("user_id")["segment_id"])
    return pd.concat(found, axis=1, keys=range(len(found)))


def describe(model: SegmentModel) -> pd.DataFrame:
    """Return the segments as a table to read, the largest first, with what is typical of each in words."""
    return pd.DataFrame(
        {
            "segment_id": segment.segment_id,
            "segment_name": segment.name,
            "user_count": segment.size,
            "user_share": segment.share,
            "stability": segment.stability,
            "summary": segment.summary,
            "flags": list(segment.flags),
            "typical": [trait.in_words() for trait in segment.typical[:TRAITS_SHOWN]],
            "rule": segment.rule.text if segment.rule else None,
            "rule_precision": segment.rule.precision if segment.rule else np.nan,
            "rule_recall": segment.rule.recall if segment.rule else np.nan,
        }
        for segment in sorted(model.segments, key=lambda segment: (-segment.size, segment.segment_id))
    )


def keep_names(model: SegmentModel, known: SegmentModel, taken: Iterable[str] = ()) -> SegmentModel:
    """Give segments the names they have in an earlier model, by id, as long as these are true; see `models.names`.

    No segment gets a name in `taken`.
    """
    earlier = {segment.segment_id: Named(segment.name, segment.named_by) for segment in known.segments}
    named = naming.names(
        [segment.typical for segment in model.segments],
        [segment.size for segment in model.segments],
        {i: earlier[one.segment_id] for i, one in enumerate(model.segments) if one.segment_id in earlier},
        taken,
    )
    segments = tuple(
        replace(segment, name=one.name, named_by=one.by, summary=descriptions.summarise(segment.typical, one.by))
        for segment, one in zip(model.segments, named, strict=True)
    )
    return replace(model, segments=segments)


def profiles(model: SegmentModel, snapshot: pd.DataFrame) -> pd.DataFrame:
    """Return the means of segments' users: a row per segment name, a column per feature, in standard deviations.

    0 is the average user of the snapshot that the model was fitted to; the segments are in the order of their ids.
    """
    standardised = spaces.standardised(model.pipeline, snapshot)
    of_users = clusters.clusters_of(model.pipeline, snapshot)
    order = [i for i in np.argsort(model.ids) if (of_users == i).any()]
    means = standardised.groupby(of_users).mean().loc[order]
    return means.set_axis([model.segments[i].name for i in order])


def numbered(sizes: Sequence[int] | NDArray[np.int_], first: int) -> list[str]:
    """Return ids from the number `first` on, the largest size first."""
    rank = np.argsort(np.argsort(-np.asarray(sizes), kind="stable"))
    return [f"S{first + int(position):02d}" for position in rank]
