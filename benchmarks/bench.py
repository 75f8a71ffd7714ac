"""Measure Habitus beside other tools: `make bench`. Results go to benchmarks/results and to docs/benchmarks.md."""

import itertools
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Annotated

import foretelling
import relearning
import simulated
import stationary
import typer
from apart import FailedError, Taken, call_apart
from contestants import increment as day
from contestants import publishing as publishings
from contestants import report as reports
from contestants import scoring as scores
from contestants import serving as servings
from contestants import snapshots as weekly
from digest import digest
from lakes import KEPT, lake_of
from machine import machine
from page import RESULTS, write_page

from features import engines
from features.synthetic import Traffic
from flows.configuration import load


@dataclass(frozen=True)
class Contestant:
    """Say which package a contestant needs, and how many events it is asked to take at most."""

    package: str
    most_events: int | None = None


HABITUS = "habitus"
CONTESTANTS = {
    HABITUS: Contestant("ibis"),
    "duckdb_fast": Contestant("duckdb"),
    "duckdb_lag": Contestant("duckdb"),
    "polars_slots": Contestant("polars"),
    "pandas_groupby": Contestant("pandas", most_events=10_000_000),
    "pyspark_windows": Contestant("pyspark"),
}

EXAMPLES = Path(__file__).parents[1] / "examples"
EVER_DAYS = 36_500
PREDICTED = {
    "oulad, everyone": ("oulad", "2013-08-25", True),
    "oulad, active in the 28 days before": ("oulad", "2013-08-25", False),
    "online_retail, active in the 90 days before": ("online_retail", "2011-12-09", False),
}
"""An example, the instant it is trained at, and whether users who left long ago are asked about too."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command()
def sessions(
    events: Annotated[int, typer.Option(help="How many events there are.")] = 10_000_000,
    days: Annotated[int, typer.Option(help="On how many days sessions begin.")] = 180,
    rounds: Annotated[int, typer.Option(help="How often each contestant runs, in turn with the others.")] = 3,
    only: Annotated[str, typer.Option(help=f"Which run beside habitus, by comma: {', '.join(CONTESTANTS)}.")] = "",
) -> None:
    """Make all sessions of the same events with every contestant, and check that they are the same sessions."""
    chosen = {HABITUS, *(only.split(",") if only else CONTESTANTS)}
    if unknown := chosen - CONTESTANTS.keys():
        raise typer.BadParameter(f"there is no {', '.join(sorted(unknown))}", param_hint="--only")
    able = [name for name in CONTESTANTS if name in chosen and _is_able(name, events)]
    print(f"{events:,} events over {days} days: making them, unless they are there", flush=True)
    lake = lake_of(Traffic(events, days))
    runs: dict[str, list[Taken]] = {name: [] for name in able}
    failed: dict[str, str] = {}
    made = ""
    for number, name in ((number, name) for number in range(1, rounds + 1) for name in able):
        if name in failed:
            continue
        try:
            found, taken = _run(f"contestants.{name}:sessionize", lake)
        except FailedError as error:
            if name == HABITUS:
                raise SystemExit(str(error)) from error
            failed[name] = str(error).splitlines()[-1]
            print(f"  {number}/{rounds} {name:16} failed: {failed[name]}", flush=True)
            continue
        made = made or found
        if found != made:
            raise SystemExit(f"{name} makes other sessions than habitus: {found}, not {made}")
        runs[name].append(taken)
        _say(number, rounds, name, taken)
    through = {name: taken for name, taken in runs.items() if name not in failed}
    _store(
        f"sessions-{events}",
        {
            "measure": "sessions",
            "events": events,
            "days": days,
            "sessions": int(made.partition("-")[0]),
            "runs": _told(through),
            "failed": failed,
        },
    )
    for name, taken_by_round in through.items():
        ratio = median(t.seconds for t in taken_by_round) / median(t.seconds for t in runs[HABITUS])
        print(f"{name:16} {ratio:5.2f} times as long as habitus")


@app.command()
def increment(
    events_per_day: Annotated[int, typer.Option(help="How many events a day has.")] = 277_778,
    days: Annotated[str, typer.Option(help="How many days of history there are, by comma.")] = "30,180",
    rounds: Annotated[int, typer.Option(help="How often each is measured, in turn.")] = 3,
) -> None:
    """Bring sessions up to date after a day, and make them all anew, on histories of several lengths."""
    lengths = [int(length) for length in days.split(",")]
    KEPT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="grown-", dir=KEPT) as folder:
        grown = {length: Path(folder) / str(length) for length in lengths}
        added = {
            length: day.add_a_day(lake_of(Traffic(events_per_day * length, length)), grown[length])
            for length in lengths
        }
        made: dict[int, str] = {}
        runs: dict[str, list[Taken]] = {f"{kind} {length}": [] for length in lengths for kind in day.KINDS}
        for number, length, kind in itertools.product(range(1, rounds + 1), lengths, day.KINDS):
            with tempfile.TemporaryDirectory(prefix="out-", dir=folder) as out:
                day.copy(grown[length], Path(out), with_sessions=kind == "increment")
                taken = call_apart(f"contestants.increment:{kind}", out)
                found = day.content(Path(out))
            if found != made.setdefault(length, found):
                raise SystemExit(f"the {kind} makes other sessions: {found}, not {made[length]}")
            runs[f"{kind} {length}"].append(taken)
            _say(number, rounds, f"{kind} {length}", taken)
    _store(
        f"increment-{events_per_day}",
        {
            "measure": "increment",
            "events": events_per_day,
            "days": lengths,
            "added": added,
            "runs": _told(runs),
        },
    )


@app.command()
def memory(
    events: Annotated[int, typer.Option(help="How many events there are.")] = 50_000_000,
    days: Annotated[int, typer.Option(help="On how many days sessions begin.")] = 180,
    rounds: Annotated[int, typer.Option(help="How often each is measured, in turn.")] = 3,
) -> None:
    """Make all sessions with half of the machine's memory, and with 1 GB."""
    lake = lake_of(Traffic(events, days))
    runs: dict[str, list[Taken]] = {"sessionize": [], "sessionize_in_1_gb": []}
    for number, name in itertools.product(range(1, rounds + 1), runs):
        _, taken = _run(f"contestants.habitus:{name}", lake)
        runs[name].append(taken)
        _say(number, rounds, name, taken)
    _store(
        f"memory-{events}",
        {
            "measure": "memory",
            "events": events,
            "days": days,
            "runs": _told(runs),
        },
    )


@app.command()
def snapshots(
    events: Annotated[int, typer.Option(help="How many events there are.")] = 50_000_000,
    days: Annotated[int, typer.Option(help="On how many days sessions begin.")] = 180,
    rounds: Annotated[int, typer.Option(help="How often each is measured, in turn.")] = 3,
) -> None:
    """Take a snapshot of every feature, and 12 weekly ones at once."""
    lake = lake_of(Traffic(events, days))
    with tempfile.TemporaryDirectory(prefix="prepared-", dir=KEPT) as folder:
        session_count = weekly.prepare(lake, Path(folder))
        runs = _in_turn("snapshots", ["take_one", "take_weekly"], rounds, folder)
    _store(
        f"snapshots-{events}",
        {
            "measure": "snapshots",
            "events": events,
            "days": days,
            "sessions": session_count,
            "runs": _told(runs),
        },
    )


@app.command()
def scoring(
    users: Annotated[int, typer.Option(help="How many users there are.")] = 1_000_000,
    rounds: Annotated[int, typer.Option(help="How often each is measured, in turn.")] = 3,
) -> None:
    """Score users by two models, and give the reasons, beside LightGBM's own contributions for a sample."""
    KEPT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="scoring-", dir=KEPT) as folder:
        scores.prepare(Path(folder), users)
        measured = ["probabilities", "reasons_of_all", "contributions_by_lightgbm"]
        runs = _in_turn("scoring", measured, rounds, folder)
    _store(
        f"scoring-{users}",
        {
            "measure": "scoring",
            "users": users,
            "features": len(scores.NUMERIC) + len(scores.CATEGORIES),
            "sample": min(users, scores.SAMPLE),
            "runs": _told(runs),
        },
    )


@app.command()
def training(
    users: Annotated[int, typer.Option(help="How many users each weekly snapshot has.")] = 100_000,
    rounds: Annotated[int, typer.Option(help="How often it is measured.")] = 1,
) -> None:
    """Learn a propensity from 12 weekly snapshots within the default budget, and judge it."""
    KEPT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="training-", dir=KEPT) as folder:
        scores.prepare_training(Path(folder), users)
        runs = _in_turn("scoring", ["train"], rounds, folder)
    _store(
        f"training-{users}",
        {
            "measure": "training",
            "users": users,
            "weeks": scores.WEEKS,
            "features": len(scores.NUMERIC) + len(scores.CATEGORIES),
            "budget_seconds": scores.BUDGET.seconds,
            "runs": _told(runs),
        },
    )


@app.command()
def segments(
    users: Annotated[int, typer.Option(help="How many users there are.")] = 1_000_000,
    rounds: Annotated[int, typer.Option(help="How often each is measured, in turn.")] = 1,
) -> None:
    """Find and describe the segments of users, and assign all of them."""
    KEPT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="segments-", dir=KEPT) as folder:
        scores.prepare_segments(Path(folder), users)
        runs = _in_turn("scoring", ["find_segments", "assign_segments"], rounds, folder)
    _store(
        f"segments-{users}",
        {
            "measure": "segments",
            "users": users,
            "features": scores.SEGMENTED,
            "runs": _told(runs),
        },
    )


@app.command()
def publishing(
    users: Annotated[int, typer.Option(help="How many users there are.")] = 1_000_000,
    rounds: Annotated[int, typer.Option(help="How often each is measured, in turn.")] = 3,
) -> None:
    """Deliver a version to PostgreSQL, beside COPY of the same rows by hand, and check that they are the same."""
    runs: dict[str, list[Taken]] = {"deliver": [], "copy_by_hand": []}
    KEPT.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="publishing-", dir=KEPT) as folder,
        publishings.prepared(Path(folder), users),
    ):
        for number in range(1, rounds + 1):
            for name in runs:
                runs[name].append(taken := call_apart(f"contestants.publishing:{name}", folder))
                _say(number, rounds, name, taken)
                if name == "deliver":
                    publishings.make_tables_by_hand(Path(folder))
            if differing := publishings.differing_rows(Path(folder)):
                raise SystemExit(f"{differing} rows are not the same as by hand")
    _store(
        f"publishing-{users}",
        {
            "measure": "publishing",
            "users": users,
            "columns": len(publishings.COLUMNS["assignments_history"]),
            "runs": _told(runs),
        },
    )


@app.command()
def report(
    users: Annotated[int, typer.Option(help="How many users there are.")] = 110_000,
    rounds: Annotated[int, typer.Option(help="How often it is measured.")] = 3,
) -> None:
    """Write the report of a version; of the least active users, some never come, and are in no report."""
    KEPT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="report-", dir=KEPT) as folder:
        reports.prepare(Path(folder), users)
        runs = _in_turn("report", ["report"], rounds, folder)
        told = reports.told(Path(folder))
    _store(f"report-{users}", {"measure": "report", **told, "runs": _told(runs)})


@app.command()
def serving(
    users: Annotated[int, typer.Option(help="How many users there are.")] = 100_000,
    in_flight: Annotated[int, typer.Option(help="How many requests are in flight.")] = 50,
    seconds: Annotated[float, typer.Option(help="For how long each is asked.")] = 10,
    rounds: Annotated[int, typer.Option(help="How often each is measured, in turn.")] = 3,
) -> None:
    """Ask the API for pages of lists of users, and a bare FastAPI route for nothing, on this machine only."""
    loads: dict[str, list[servings.Load]] = {kind: [] for kind in servings.KINDS}
    KEPT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="serving-", dir=KEPT) as folder:
        servings.prepare(Path(folder), users)
        for number, kind in itertools.product(range(1, rounds + 1), loads):
            load = servings.measure(kind, Path(folder), in_flight, seconds)
            loads[kind].append(load)
            print(
                f"  {number}/{rounds} {kind:6} {load.requests_per_second:6.0f} requests/s, 95 % within "
                f"{load.p95_ms:5.1f} ms",
                flush=True,
            )
    _store(
        f"serving-{users}",
        {
            "measure": "serving",
            "users": users,
            "segments": servings.SEGMENTS,
            "in_flight": in_flight,
            "seconds": seconds,
            "runs": {kind: [asdict(load) for load in of_kind] for kind, of_kind in loads.items()},
        },
    )


@app.command()
def predictions() -> None:
    """Train on the real examples, and tell how good churn is predicted on a later snapshot."""
    told = {}
    for name, (example, as_of, everyone) in PREDICTED.items():
        with tempfile.TemporaryDirectory() as folder:
            source = EXAMPLES / example
            copied = Path(
                shutil.copytree(source, Path(folder) / example, ignore=shutil.ignore_patterns(*relearning.MADE))
            )
            config = copied / "habitus.toml"
            text = config.read_text().replace("../../mlruns", "mlruns")
            config.write_text(
                re.sub(r"eligible_days = \d+", f"eligible_days = {EVER_DAYS}", text) if everyone else text
            )
            command = [sys.executable, "-m", "flows.cli", "run", str(config), "--json", "--as-of", as_of]
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
            if done.returncode:
                raise SystemExit(done.stderr)
        trained = json.loads(done.stdout)["trained"]["churn"]
        told[name] = {**trained["metrics"], "as_of": as_of}
        print(f"  {name}: {trained['reason']}", flush=True)
    _store("predictions", {"measure": "predictions", "events": 0, "told": told})


@app.command(name="relearning")
def relearn(
    only: Annotated[str, typer.Option(help="Of which example; what is stored of the others stays.")] = "",
) -> None:
    """Learn at past instants of the examples with one slice more, and tell how much better that predicts."""
    stored = RESULTS / "relearning.json"
    with tempfile.TemporaryDirectory(prefix="relearning-") as folder:
        for name, case in relearning.CASES.items():
            if only not in ("", case.example):
                continue
            found = relearning.study(case, EXAMPLES, Path(folder))
            for where in ("test", "next"):
                if found[where]:
                    gain = found[where]["gain"]
                    told = f"{gain['value']:.4f} ({gain['low']:.4f} to {gain['high']:.4f})"
                    print(f"  {name}, {where}: {told}", flush=True)
            before = json.loads(stored.read_text())["told"] if stored.exists() else {}
            kept = {other: before[other] for other in relearning.CASES if other in before}
            _store("relearning", {"measure": "relearning", "events": 0, "told": kept | {name: found}})


@app.command()
def promotions(
    worlds: Annotated[int, typer.Option(help="In how many worlds is decided on each challenger.")] = 500,
) -> None:
    """Decide on challengers in worlds whose truth is known, and tell how many are promoted."""
    told = {}
    for challenger in (*simulated.NOISES, simulated.ITSELF):
        told[challenger] = sum(one.promoted for one in simulated.decisions(challenger, worlds))
        print(f"  {challenger}: {told[challenger]} of {worlds} are promoted", flush=True)
    result = {"measure": "promotions", "events": 0, "worlds": worlds, "rows": simulated.ROWS, "told": told}
    _store("promotions", result)


@app.command()
def refits(
    count: Annotated[int, typer.Option(help="How often segments are fitted again.")] = 50,
) -> None:
    """Fit the segments of examples/ecom again, and tell which share of users stays in the same segment."""
    KEPT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="refits-", dir=KEPT) as folder:
        copied = Path(
            shutil.copytree(EXAMPLES / "ecom", Path(folder) / "ecom", ignore=shutil.ignore_patterns(*relearning.MADE))
        )
        for stage in ("ingest", "sessions", "snapshot"):
            command = [sys.executable, "-m", "flows.cli", stage, "habitus.toml"]
            subprocess.run(command, check=True, cwd=copied, capture_output=True)
        with load(copied / "habitus.toml").open_lake() as lake:
            table = lake.find_contract("snapshots")
            snapshot = lake.read(table, only=[max(lake.partitions(table))]).to_pandas()
        told = []
        for ids_kept, share in simulated.refits(snapshot, count):
            told.append({"ids_kept": ids_kept, "share": share})
            print(f"  {len(told)}/{count}: {share:.1%} of users stay", flush=True)
    _store("refits", {"measure": "refits", "events": 0, "users": len(snapshot), "told": told})


@app.command()
def segments_tell() -> None:
    """Find segments of the examples at several instants, and tell how much they told of what came, and stayed."""
    told: dict[str, dict[str, object]] = {}
    KEPT.mkdir(exist_ok=True)
    for name, days in foretelling.EXAMPLES.items():
        with tempfile.TemporaryDirectory(prefix="telling-", dir=KEPT) as folder:
            copied = Path(
                shutil.copytree(EXAMPLES / name, Path(folder) / name, ignore=shutil.ignore_patterns(*relearning.MADE))
            )
            for stage in ("ingest", "sessions"):
                command = [sys.executable, "-m", "flows.cli", stage, "habitus.toml"]
                subprocess.run(command, check=True, cwd=copied, capture_output=True)
            found = []
            for number, one in enumerate(foretelling.study(copied, days), start=1):
                found.append(one)
                print(f"  {name} {number}/{len(days)} {one['as_of']}: {one['segments']['chosen']}", flush=True)
            told[name] = {"instants": found, "shuffled": foretelling.shuffled(copied, days[-1])}
    _store("segments-tell", {"measure": "segments-tell", "events": 0, "told": told})


@app.command()
def brakes(
    weeks: Annotated[int, typer.Option(help="For how many weeks versions are published.")] = 20,
    places: Annotated[int, typer.Option(help="How many users there are at a time.")] = 2_000,
) -> None:
    """Publish versions of a shop where every week is as the one before, and tell what the brake holds."""
    told, users = {}, 0
    for rhythm in stationary.RHYTHMS:
        with tempfile.TemporaryDirectory(prefix="brakes-") as folder:
            engine = engines.connect()
            world = stationary.World(engine, places, 7 * weeks + 1)
            trial = stationary.try_brake(world, rhythm, Path(folder) / "lake")
            users = int(world.events.user_id.nunique().to_pyarrow().as_py())
            engine.disconnect()
        told[rhythm] = asdict(trial)
        print(f"  {rhythm}: {len(trial.held)} of {trial.versions} are held: {trial.held}", flush=True)
        for kind, held in trial.accidents.items():
            print(f"  {rhythm}: {kind}: {sum(held)} of {len(held)} are held", flush=True)
    _store("brakes", {"measure": "brakes", "events": 0, "weeks": weeks, "users": users, "told": told})


@app.command()
def studies(
    only: Annotated[str, typer.Option(help="Which, by comma; all without.")] = "",
) -> None:
    """Do every measurement and simulation anew, at the sizes that docs/benchmarks.md tells of."""
    chosen = only.split(",") if only else [*dict.fromkeys(name for name, _ in STUDIES)]
    if unknown := {*chosen} - {name for name, _ in STUDIES}:
        raise typer.BadParameter(f"there is no {', '.join(sorted(unknown))}", param_hint="--only")
    asked = [(name, options) for name, options in STUDIES if name in chosen]
    began = time.monotonic()
    for number, (name, options) in enumerate(asked, start=1):
        minutes = (time.monotonic() - began) / 60
        print(f"{number}/{len(asked)} {name} {options}, after {minutes:.0f} min", flush=True)
        subprocess.run([sys.executable, __file__, name, *options.split()], check=True)


STUDIES = (
    ("promotions", ""),
    ("refits", ""),
    ("brakes", ""),
    ("segments-tell", ""),
    ("predictions", ""),
    ("relearning", ""),
    ("sessions", "--events 1000000 --days 30"),
    ("sessions", "--events 10000000"),
    ("sessions", "--events 50000000"),
    ("sessions", "--events 100000000 --rounds 2 --only duckdb_fast,polars_slots"),
    *((name, "") for name in ("increment", "memory", "snapshots", "scoring", "training", "segments", "publishing")),
    ("report", ""),
    ("serving", ""),
)
"""What docs/benchmarks.md tells of: the simulations first, which take minutes; the largest measurements take hours."""


@app.command()
def page() -> None:
    """Write docs/benchmarks.md from the results that there are."""
    write_page()


def _is_able(name: str, events: int) -> bool:
    contestant = CONTESTANTS[name]
    if find_spec(contestant.package) is None:
        print(f"{name} is left out: {contestant.package} is not installed")
        return False
    if contestant.most_events is not None and events > contestant.most_events:
        print(f"{name} is left out: so many events need more memory than most machines have")
        return False
    return True


def _run(function: str, lake: Path) -> tuple[str, Taken]:
    """Make sessions in a process of its own and a folder that is gone afterwards; return their digest."""
    with tempfile.TemporaryDirectory(prefix="out-", dir=lake.parent) as out:
        taken = call_apart(function, lake, out)
        return digest(Path(out) / "sessions"), taken


def _in_turn(contestant: str, names: Sequence[str], rounds: int, folder: str) -> dict[str, list[Taken]]:
    """Call functions of a contestant in turn, each in a process of its own, with the folder that it prepared."""
    runs: dict[str, list[Taken]] = {name: [] for name in names}
    for number, name in itertools.product(range(1, rounds + 1), names):
        runs[name].append(taken := call_apart(f"contestants.{contestant}:{name}", folder))
        _say(number, rounds, name, taken)
    return runs


def _say(number: int, rounds: int, name: str, taken: Taken) -> None:
    print(f"  {number}/{rounds} {name:26} {taken.seconds:7.2f} s {taken.peak_bytes / 1e9:6.2f} GB", flush=True)


def _told(runs: Mapping[str, Sequence[Taken]]) -> dict[str, list[dict[str, float]]]:
    return {name: [asdict(taken) for taken in of_rounds] for name, of_rounds in runs.items()}


def _store(name: str, result: dict[str, object]) -> None:
    RESULTS.mkdir(exist_ok=True)
    whole = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "machine": machine(), **result}
    (RESULTS / f"{name}.json").write_text(json.dumps(whole, indent=2) + "\n")
    write_page()


if __name__ == "__main__":
    app()
