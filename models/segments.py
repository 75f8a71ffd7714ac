"""Segments that the users' behaviour itself suggests: found, judged, named, and kept the same over time.

A *cluster* is a fit's arbitrary index, a *segment* what it is called in public: the segment at position i of
`SegmentModel.segments` is cluster i of the pipeline.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.pipeline import Pipeline

from models import clusters, descriptions, names, segment_rules
from models.clusters import Candidate, NotEnoughUsers
from models.descriptions import Trait
from models.names import Named
from models.segment_rules import SegmentRule

__all__ = [
    "NotEnoughUsers",
    "Segment",
    "SegmentModel",
    "assign",
    "describe",
    "fit",
    "keep_names",
    "numbered",
    "profiles",
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
        """Return the segment that `asdict` told; what was not yet known when it was stored has its default."""
        traits = {name: tuple(Trait(**trait) for trait in told.get(name, ())) for name in ("typical", "named_by")}
        rule = SegmentRule(**told["rule"]) if told.get("rule") else None
        return cls(**(told | traits | {"rule": rule, "flags": tuple(told.get("flags", ()))}))


@dataclass(frozen=True)
class SegmentModel:
    """A fitted pipeline with its segments; `next_number` is the first number no segment ever had.

    `chosen` tells how the clusters were found, among which `candidates`; `doubt` says why they are not to be relied on.
    """

    pipeline: Pipeline
    segments: tuple[Segment, ...]
    next_number: int
    chosen: Candidate | None = None
    candidates: tuple[Candidate, ...] = ()
    doubt: str | None = None

    @property
    def features(self) -> list[str]:
        """Return the features that the segments are made of, in the pipeline's order."""
        return clusters.columns_of(self.pipeline)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the pipeline, ready for JSON."""
        return {
            "segments": [asdict(segment) for segment in self.segments],
            "next_number": self.next_number,
            "chosen": asdict(self.chosen) if self.chosen else None,
            "candidates": [asdict(candidate) for candidate in self.candidates],
            "doubt": self.doubt,
        }

    @classmethod
    def from_dict(cls, pipeline: Pipeline, metadata: dict[str, Any]) -> "SegmentModel":
        """Return the model that `to_dict` described, around its pipeline; what older versions do not tell is empty."""
        segments = tuple(Segment.from_dict(segment) for segment in metadata["segments"])
        candidates = tuple(Candidate.from_dict(told) for told in metadata.get("candidates", ()))
        chosen = Candidate.from_dict(metadata["chosen"]) if metadata.get("chosen") else None
        return cls(pipeline, segments, metadata["next_number"], chosen, candidates, metadata.get("doubt"))


def fit(
    snapshot: pd.DataFrame,
    k_min: int,
    k_max: int,
    seed: int,
    *,
    share_min: float = clusters.SHARE_MIN,
    stability_min: float = clusters.STABILITY_MIN,
    champion: "SegmentModel | None" = None,
) -> SegmentModel:
    """Find the segments of one snapshot, by k-means or a mixture of normal distributions, on the float64 features.

    Counts, durations and amounts are compressed by the inverse hyperbolic sine, a logarithm that also takes 0
    and refunds; all features are standardised and cut at three deviations. A null is then filled with 0, the
    average, so that what does not apply to a user pulls nowhere; that it does not apply is a feature of its own. Of one
    quantity over several windows only the longest counts, of two features that correlate by more than 0.9 only the
    first, and none that goes with no other and has but one heap. What is left is projected on principal components with
    90 % of its variance.

    Candidates of both kinds, with `k_min` (at least 2) to `k_max` clusters, are judged by separation times stability:
    the silhouette against that of one heap, and how alike refits to bootstraps are. Those that are hardly more separate
    than one heap, of a stability under `stability_min`, with a cluster that refits lose, or with one of fewer users
    than the share `share_min` are not eligible. The fewest clusters within
    5 % of the best are chosen; but those of the `champion`, if it is within 15 %. If none is eligible, the model has a
    `doubt`.

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
    )
    k = found.chosen.k
    typical = descriptions.traits(users, found.of_users, k)
    rules = segment_rules.find(users[clusters.columns_of(found.pipeline)], found.of_users, k)
    sizes = np.bincount(found.of_users, minlength=k)
    numbers = numbered(sizes, first=1)
    named = names.names(typical, sizes)
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
    return SegmentModel(found.pipeline, segments, k + 1, found.chosen, found.candidates, found.doubt)


def _incumbent(model: SegmentModel, users: pd.DataFrame) -> clusters.Incumbent:
    ids = pd.Index([segment.segment_id for segment in model.segments])
    return clusters.Incumbent(
        clusters.method_of(model.pipeline), ids.get_indexer(pd.Index(assign(model, users)["segment_id"]))
    )


def assign(model: SegmentModel, snapshot: pd.DataFrame) -> pd.DataFrame:
    """Assign every user of a snapshot to the nearest segment, each for itself.

    Returns one row per user in the snapshot's order: user_id, segment_id, segment_name, segment_strength and
    runner_up_segment_id. The strength is 1 - d1 / d2 with the distances to the nearest and the second nearest
    segment's centre: 1 at the centre, 0 on the border between two.
    """
    distances = clusters.distances(model.pipeline[:-1].transform(snapshot), model.pipeline[-1])
    order = np.argsort(distances, axis=1, kind="stable")[:, :2]
    nearest, second = np.take_along_axis(distances, order, axis=1).T
    ids = np.array([segment.segment_id for segment in model.segments])
    names = np.array([segment.name for segment in model.segments])
    return pd.DataFrame(
        {
            "user_id": snapshot["user_id"].to_numpy(),
            "segment_id": ids[order[:, 0]],
            "segment_name": names[order[:, 0]],
            "segment_strength": 1 - np.divide(nearest, second, out=np.ones_like(nearest), where=second > 0),
            "runner_up_segment_id": ids[order[:, 1]],
        }
    )


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
    """Give segments the names they have in an earlier model, by id, as long as these are true; see `names.names`.

    No segment gets a name in `taken`.
    """
    earlier = {segment.segment_id: Named(segment.name, segment.named_by) for segment in known.segments}
    named = names.names(
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


def profiles(model: SegmentModel) -> pd.DataFrame:
    """Return the segments' centres: a row per segment name, a column per feature, in standard deviations.

    0 is the average user; the segments are in the order of their ids.
    """
    order = sorted(range(len(model.segments)), key=lambda i: model.segments[i].segment_id)
    return clusters.profiles_of(model.pipeline).iloc[order].set_axis([model.segments[i].name for i in order])


def numbered(sizes: Sequence[int] | NDArray[np.int_], first: int) -> list[str]:
    """Return ids from the number `first` on, the largest size first."""
    rank = np.argsort(np.argsort(-np.asarray(sizes), kind="stable"))
    return [f"S{first + int(position):02d}" for position in rank]
