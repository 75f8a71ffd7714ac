"""How much segments of the examples tell of what came after they were found, and whether they stay the same."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import ibis.expr.types as ir
import numpy as np
import pandas as pd
from sklearn.cluster import KMeans

from features.attributes import ATTRIBUTES
from features.events import EVENTS
from features.lake import Lake
from features.outcomes import outcomes
from features.sessions import SESSIONS
from features.snapshots import take_snapshots
from features.table import materialize
from flows.configuration import Configuration, load
from models.clusters import clusters_of
from models.segments import SegmentModel, align, assign, fit
from models.spaces import Lessons, Space, prepare
from models.telling import Past, measure, outcomes_of

EXAMPLES = {
    "online_retail": ("2011-07-04", "2011-07-18", "2011-08-01", "2011-08-15", "2011-08-29"),
    "oulad": ("2013-05-24", "2013-06-21", "2013-08-16", "2013-12-06", "2014-02-28", "2015-02-13"),
    "ecom": ("2024-04-13", "2024-04-27", "2024-05-11", "2024-05-25"),
}
"""The instants at which segments are found, each with a past to learn from and a future to be judged by."""
WEEK = timedelta(days=7)
PAST = 3
K_MIN, K_MAX = 3, 8
SHUFFLES = 20
GUIDED: tuple[Space, ...] = ("weighted", "outlook")


def study(folder: Path, days: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Find segments of an example at each day, judge them by what came, and find them again a week later."""
    configuration = load(folder / "habitus.toml")
    instants = [datetime.fromisoformat(day).replace(tzinfo=UTC) for day in days]
    with configuration.open_lake() as lake:
        world = _World(configuration, lake, instants)
        for instant in instants:
            yield _judge(world, instant)


def shuffled(folder: Path, day: str) -> list[dict[str, Any]]:
    """Learn what counts from outcomes that were shuffled among users, and compare what is told with the blind.

    `chosen` is the space of the segments that are found with such a past, as many as the blind ones.
    """
    configuration = load(folder / "habitus.toml")
    instant = datetime.fromisoformat(day).replace(tzinfo=UTC)
    with configuration.open_lake() as lake:
        world = _World(configuration, lake, [instant])
        past, judged = world.past(instant), world.judged(instant)
        now = world.snapshots[instant]
        blind = fit(now, K_MIN, K_MAX, 0)
        k = len(blind.segments)
        ours = _r2(measure(lambda users: clusters_of(blind.pipeline, users), k, judged), "segments")
        found = []
        for seed in range(SHUFFLES):
            mixed = _shuffled(past, seed)
            names = outcomes_of(mixed)
            lessons = Lessons.of([(one.users, one.matrix(names)) for one in mixed])
            chosen = fit(now, k, k, 0, past=mixed).chosen
            assert chosen is not None
            told: dict[str, float] = {}
            for space in GUIDED:
                preparation = prepare(now, space, lessons)
                model = KMeans(k, n_init=10, random_state=0).fit(preparation.transform(now))

                def segments(users: pd.DataFrame, preparation: Any = preparation, model: Any = model) -> Any:
                    return model.predict(preparation.transform(users))

                told[space] = _r2(measure(segments, k, judged), "segments")
            found.append({"blind": ours, **told, "chosen": chosen.space})
        return found


class _World:
    """Hold the snapshots of an example that a study needs, and what their users did."""

    def __init__(self, configuration: Configuration, lake: Lake, instants: Sequence[datetime]) -> None:
        self.configuration = configuration
        self.reach = configuration.labels.reach
        self._events = materialize(lake.read(EVENTS))
        ends = [end for one in instants for end in (one, one + WEEK)]
        needed = sorted({end - number * self.reach for end in ends for number in range(PAST + 1)})
        span = self._events.agg(first=self._events.occurred_at.min()).to_pyarrow()["first"][0].as_py()
        needed = [one for one in needed if one > span]
        self.snapshots: dict[datetime, pd.DataFrame] = {}
        self._tables: dict[datetime, ir.Table] = {}
        for some, rows in take_snapshots(
            self._events, lake.read(SESSIONS), lake.read(ATTRIBUTES), needed, **configuration.snapshot_definitions
        ):
            taken = materialize(rows)
            for instant in some:
                self._tables[instant] = taken.filter(taken.as_of == instant)
                users = self._tables[instant].to_pandas().sort_values("user_id", ignore_index=True)
                self.snapshots[instant] = users

    def past(self, instant: datetime) -> list[Past]:
        """Return the snapshots before an instant whose outcomes were complete then."""
        instants = [instant - number * self.reach for number in range(PAST, 0, -1)]
        return [self._with_outcomes(one, instant) for one in instants if one in self.snapshots]

    def judged(self, instant: datetime) -> list[Past]:
        """Return the snapshot at an instant and the one before with what came after both, as known afterwards."""
        return [self._with_outcomes(one, instant + self.reach) for one in (instant - self.reach, instant)]

    def _with_outcomes(self, instant: datetime, known_at: datetime) -> Past:
        labels = self.configuration.labels.named
        found = outcomes(self._tables[instant], self._events, known_at, labels).to_pandas()
        return Past(self.snapshots[instant], found.sort_values("user_id", ignore_index=True))


def _judge(world: _World, instant: datetime) -> dict[str, Any]:
    now, later = world.snapshots[instant], world.snapshots[instant + WEEK]
    told: dict[str, Any] = {"as_of": instant.date().isoformat(), "users": len(now)}
    for way, is_guided in (("segments", True), ("blind", False)):
        past = world.past(instant) if is_guided else []
        model = _aligned(fit(now, K_MIN, K_MAX, 0, past=past), None, now, instant)
        again = fit(later, K_MIN, K_MAX, 0, past=world.past(instant + WEEK) if is_guided else [], champion=model)
        again = _aligned(again, model, later, instant + WEEK, before=now)
        assert model.chosen is not None
        k = len(model.segments)
        told[way] = {
            "chosen": model.chosen.name,
            "k": k,
            "doubt": model.doubt,
            "stability": model.chosen.stability,
            "steadiness": model.chosen.steadiness,
            "largest_share": max(one.share for one in model.segments),
            "kept_share": float((assign(model, later)["segment_id"] == assign(again, later)["segment_id"]).mean()),
            "tells": measure(partial(clusters_of, model.pipeline), k, world.judged(instant)),
        }
    return told


def _aligned(
    model: SegmentModel,
    champion: SegmentModel | None,
    now: pd.DataFrame,
    instant: datetime,
    before: pd.DataFrame | None = None,
) -> SegmentModel:
    number = 1 if champion is None else champion.next_number
    return align(model, champion, before, now, number, instant.isoformat(), {})


def _shuffled(past: Sequence[Past], seed: int) -> list[Past]:
    random = np.random.default_rng(seed)
    return [
        replace(one, outcomes=one.outcomes.iloc[random.permutation(len(one.outcomes))].reset_index(drop=True))
        for one in past
    ]


def _r2(tells: Mapping[str, Any], way: str) -> float:
    """Return what is told of all outcomes, on average."""
    return float(np.mean([told["metrics"][way]["r2"]["value"] for told in tells["outcomes"].values()]))
