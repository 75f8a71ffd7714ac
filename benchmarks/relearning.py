"""What it is worth to learn once more from the slices that a model was chosen by, and tested on."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import ibis
import pandas as pd

from features.attributes import ATTRIBUTES
from features.events import EVENTS
from features.labels import Purpose, SnapshotDates, column_of, label, snapshot_dates
from features.sessions import SESSIONS
from features.snapshots import take_snapshots
from features.table import materialize
from flows.configuration import Configuration, load
from flows.instant import event_span
from flows.train import MINIMUM_OF_EACH_CLASS, MINIMUM_ROWS, PURPOSES
from models.evaluation import Bootstrap, Probabilities, compare, losses
from models.propensities import Budget, data_gate, fit, predict, refit

INSTANTS_MAX = 6
MADE = ("lake", "published", "mlruns")


@dataclass(frozen=True)
class Case:
    """Say of which example a label is learnt, what its configuration has instead, and how far apart trainings are."""

    example: str
    kind: str
    instead: tuple[tuple[str, str], ...] = ()
    every_days: int = 28


EVERYONE = (("eligible_days = 28", "eligible_days = 36500"),)
CASES = {
    "oulad, churn, everyone": Case("oulad", "churn", EVERYONE, every_days=112),
    "oulad, churn": Case("oulad", "churn", every_days=112),
    "oulad, conversion": Case("oulad", "conversion", every_days=112),
    "online_retail, churn": Case("online_retail", "churn", every_days=14),
    "online_retail, conversion": Case("online_retail", "conversion", every_days=14),
    "online_retail, churn in 28 days": Case("online_retail", "churn", (("horizon_days = 90", "horizon_days = 28"),)),
    "ecom, churn": Case("ecom", "churn"),
    "ecom, conversion": Case("ecom", "conversion"),
}


def study(case: Case, source: Path, folder: Path) -> dict[str, Any]:
    """Learn at past instants what is chosen, once more with the validation, and once more with the test.

    The first two are compared on the test, and the last two on the next slice that is complete after it.
    """
    configuration = _prepared(case, source, folder)
    name, settings = column_of(case.kind), configuration.training
    rows, instants = _labelled(configuration, case)
    on_test, on_next, seconds = _Seen(), _Seen(), {"fit": 0.0, "refit": 0.0}
    for dates in instants:
        train, validation, test, later = (rows[rows["as_of"].isin(some)] for some in _slices(dates))
        slices: dict[Purpose, pd.DataFrame] = dict(zip(PURPOSES, (train, validation, test), strict=True))
        if data_gate(slices, name, MINIMUM_ROWS, MINIMUM_OF_EACH_CLASS):
            continue
        began = time.perf_counter()
        rises, budget = case.kind == "churn", Budget(settings.trials, settings.trial_seconds)
        chosen = fit(train, validation, name, settings.seed, budget, rises=rises)
        fitted = time.perf_counter()
        judged = refit(chosen, train, validation, name, settings.seed)
        seconds["fit"] += fitted - began
        seconds["refit"] += time.perf_counter() - fitted
        on_test.see(test, name, predict(chosen.model, test), predict(judged.model, test))
        if len(later) >= MINIMUM_ROWS:
            again = refit(chosen, pd.concat([train, validation]), test, name, settings.seed)
            on_next.see(later, name, predict(judged.model, later), predict(again.model, later))
    return {"test": on_test.told(), "next": on_next.told(), "seconds": seconds}


class _Seen:
    """Rows of all instants, and what was predicted before and with one slice more."""

    def __init__(self) -> None:
        self.parts: list[pd.DataFrame] = []

    def see(self, rows: pd.DataFrame, label: str, before: Probabilities, more: Probabilities) -> None:
        kept = rows[["user_id", label]].rename(columns={label: "label"})
        self.parts.append(kept.assign(before=before, more=more))

    def told(self) -> dict[str, Any] | None:
        """Return how good both are over all instants, and the gain by user; None where there was nothing to see."""
        if not self.parts:
            return None
        seen = pd.concat(self.parts, ignore_index=True)
        before, more = seen["before"].to_numpy(), seen["more"].to_numpy()
        return {
            "instants": len(self.parts),
            "rows": len(seen),
            "before": float(losses(seen["label"], before).mean()),
            "more": float(losses(seen["label"], more).mean()),
            "gain": asdict(compare(seen["label"], more, before, Bootstrap(seen["user_id"]))),
        }


def _prepared(case: Case, source: Path, folder: Path) -> Configuration:
    """Copy an example and make its sessions, unless they are there, and change what its configuration says."""
    config = folder / case.example / "habitus.toml"
    text = (source / case.example / config.name).read_text().replace("../../mlruns", "mlruns")
    if not config.exists():
        shutil.copytree(source / case.example, config.parent, ignore=shutil.ignore_patterns(*MADE))
        config.write_text(text)
        for stage in ("ingest", "sessions"):
            command = [sys.executable, "-m", "flows.cli", stage, str(config)]
            subprocess.run(command, check=True, cwd=config.parent, capture_output=True)
    for old, new in case.instead:
        text = text.replace(old, new)
    config.write_text(text)
    return load(config)


def _slices(dates: SnapshotDates) -> Sequence[Sequence[datetime]]:
    """Return the instants to train, validate and test on, and of the next slice: as much later as the test is."""
    return dates.train, [dates.validation], [dates.test], [dates.test + (dates.test - dates.validation)]


def _labelled(configuration: Configuration, case: Case) -> tuple[pd.DataFrame, list[SnapshotDates]]:
    """Return the labelled rows of all instants, and the slices of each training, the last one first."""
    reach, every = configuration.labels.reach, timedelta(days=configuration.training.every_days)
    with configuration.open_lake() as lake:
        span = event_span(lake)
        assert span is not None
        end = (span[1] + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
        trainings = list(_trainings(end, span[0], reach, every, configuration.training.snapshots, case.every_days))
        wanted = sorted({one for dates in trainings for some in _slices(dates) for one in some if one + reach <= end})
        events, sessions, attributes = (lake.read(table) for table in (EVENTS, SESSIONS, ATTRIBUTES))
        definitions = configuration.snapshot_definitions
        taken = [materialize(rows) for _, rows in take_snapshots(events, sessions, attributes, wanted, **definitions)]
        snapshots = materialize(ibis.union(*taken)) if len(taken) > 1 else taken[0]
        labels = label(snapshots, events, end, configuration.labels).to_pandas()
        name = column_of(case.kind)
        labels = labels.loc[labels[name].notna(), ["user_id", "as_of", name]]
        return snapshots.to_pandas().merge(labels, on=["user_id", "as_of"]).astype({name: bool}), trainings


def _trainings(
    end: datetime, first: datetime, reach: timedelta, every: timedelta, count: int, days: int
) -> Iterator[SnapshotDates]:
    for number in range(INSTANTS_MAX):
        dates = snapshot_dates(end - number * timedelta(days=days), first, reach, every, count)
        if dates.train:
            yield dates
