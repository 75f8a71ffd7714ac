"""What Spark makes of a history equals what DuckDB makes of it, row for row, and each reads what the other wrote."""

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from pathlib import Path
from random import Random
from typing import Any

import ibis
import ibis.expr.types as ir
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from shops import Ran

from features import engines
from features.aliases import ALIASES
from features.attributes import ATTRIBUTES
from features.engines import Engine
from features.events import EVENTS
from features.increments import Sessionized, update_sessions
from features.label_counts import count_labels
from features.labels import ChurnSettings, LabelSettings, label, labels_table
from features.lake import Lake
from features.sessions import SESSIONS, sessionize, sessions_at
from features.snapshots import snapshots_table, take_snapshot
from features.sources import CONSENT
from features.table import ContractError, Table, materialize
from flows.configuration import load
from flows.score import assign_users
from models import propensities, rfm, rules, segments
from publish import scoring
from publish.assignments import ASSIGNMENTS
from publish.consents import CONSENTS, PurposeSettings, consents
from publish.destination import DestinationSettings
from publish.holdout import is_held_out

spark = pytest.importorskip("features.spark", reason="Spark is optional", exc_type=ImportError)
pytestmark = pytest.mark.ci

Row = dict[str, Any]

GAP = timedelta(minutes=30)
AS_OF = datetime(2024, 2, 10, tzinfo=UTC)
KNOWN_AT = AS_OF + timedelta(days=60)
SNAPSHOTS = snapshots_table([7, 28], ["plan"])
LABELLED = LabelSettings.model_validate(
    {
        "delay_days": 1,
        "churn": {"horizon_days": 28, "eligible_days": 28},
        "conversion": {"horizon_days": 7, "events": ["purchase", r"it's \a"]},
        "bought_not": {
            "kind": "churn",
            "horizon_days": 7,
            "events": ["purchase"],
            "eligible_by": "purchase_recency_days",
        },
    }
)
SEEN_IN_7_DAYS = LabelSettings(churn=ChurnSettings(eligible_days=7)).named["churn"]
LOCAL = {
    "spark.master": "local[2]",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.shuffle.partitions": "1",
    # So few rows are gone before their code is compiled.
    "spark.sql.adaptive.enabled": "false",
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1",
}


@pytest.fixture(scope="module")
def on_spark() -> Iterator[Engine]:
    builder = spark.SparkSession.builder
    for name, value in LOCAL.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    yield spark.connect(session)
    session.stop()


@pytest.fixture(scope="module")
def on_duckdb() -> Iterator[Engine]:
    engine = engines.connect()
    yield engine
    engine.disconnect()


# --- the same expressions ---


def history() -> pa.Table:
    """Draw events with everything that is hard: ties, the gap and the cap, midnight, 1970, late, unknown."""
    random = Random(3)
    just = timedelta(microseconds=1)
    pauses = [timedelta(0), just, timedelta(seconds=10), GAP - just, GAP, GAP + just, timedelta(hours=5)]
    starts = [datetime(1970, 1, 1, tzinfo=UTC), datetime(2024, 1, 31, 23, 59, 59, 999999, tzinfo=UTC), AS_OF]
    acts = ["page_view", "page_view", "search", "support_view", "add_to_cart", "purchase", "refund", "login"]
    texts = {
        "page": ["/a", "/ü'\\"],
        "item_id": ["i1", "i2"],
        "category": ["c"],
        "source": ["ads", "mail"],
        "campaign": ["spring"],
        "device": ["phone", "desktop"],
        "country": ["FR", "DE"],
    }
    rows: list[Row] = []
    for user in range(60):
        robot = user % 10 == 0
        now = starts[user] if user < len(starts) else datetime(2024, 1, 1, tzinfo=UTC) + random.random() * timedelta(60)
        for _ in range(200 if robot else random.randrange(1, 20)):
            rows.append(
                {
                    "event_id": f"{random.randrange(10)}-{len(rows)}",
                    "user_id": f"ü{user}",
                    "occurred_at": now,
                    "ingested_at": now + random.choice([timedelta(0)] * 5 + [timedelta(days=2), timedelta(days=40)]),
                    "event_name": random.choice(acts),
                    "source_file": "events.csv",
                    "revenue": random.choice([None, 0.1, 19.99, 1 / 3, 1e6 + 0.005]),
                    **{name: random.choice([None, *values]) for name, values in texts.items()},
                }
            )
            now += random.choice([GAP] if robot else [*pauses, timedelta(days=random.random() * 9)])
    random.shuffle(rows)
    return pa.Table.from_pylist(rows, schema=EVENTS.schema.to_pyarrow())


class Made:
    """Make with an engine what is made of the history, when it is asked for."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    @cached_property
    def events(self) -> ir.Table:
        return self.engine.create_table("events", history(), temp=True)

    @cached_property
    def sessions(self) -> ir.Table:
        return materialize(sessionize(self.events, GAP))

    @cached_property
    def known(self) -> ir.Table:
        return sessions_at(self.events, self.sessions, AS_OF, GAP)

    @cached_property
    def snapshot(self) -> ir.Table:
        plans = [{"user_id": f"ü{user}", "attribute": "plan", "value": f"plan {user % 3}"} for user in range(0, 60, 2)]
        rows = pa.Table.from_pylist(plans, ATTRIBUTES.schema.to_pyarrow())
        attributes = self.engine.create_table("attributes", rows, temp=True)
        options: Row = {"windows_days": [7, 28], "attribute_names": ["plan"], "time_zone": "Europe/Berlin"}
        return materialize(take_snapshot(self.events, self.sessions, attributes, AS_OF, gap=GAP, **options))

    @cached_property
    def labels(self) -> ir.Table:
        return label(self.snapshot, self.events, KNOWN_AT, LABELLED)

    @cached_property
    def label_counts(self) -> ir.Table:
        return count_labels(self.snapshot, self.labels, self.events, KNOWN_AT, LABELLED.named["churn"])


@pytest.fixture(scope="module")
def spark_made(on_spark: Engine) -> Made:
    return Made(on_spark)


@pytest.fixture(scope="module")
def duckdb_made(on_duckdb: Engine) -> Made:
    return Made(on_duckdb)


def rows_of(made: ir.Table, table: Table) -> list[Row]:
    rows: list[Row] = made.to_pyarrow().to_pylist()
    return sorted(rows, key=lambda row: [row[name] for name in table.key])


TABLES = [
    ("sessions", SESSIONS),
    ("known", SESSIONS),
    ("snapshot", SNAPSHOTS),
    ("labels", labels_table(LABELLED.named)),
]


@pytest.mark.parametrize(("name", "table"), TABLES)
def test_the_rows_are_those_of_duckdb(spark_made: Made, duckdb_made: Made, name: str, table: Table) -> None:
    assert rows_of(getattr(spark_made, name), table) == rows_of(getattr(duckdb_made, name), table)


@pytest.mark.parametrize(("name", "table"), TABLES)
def test_the_types_are_those_of_the_contract(spark_made: Made, name: str, table: Table) -> None:
    assert getattr(spark_made, name).limit(1).to_pyarrow().schema.types == table.schema.to_pyarrow().types


def test_labels_are_counted_as_on_duckdb(spark_made: Made, duckdb_made: Made) -> None:
    [counted] = spark_made.label_counts.to_pyarrow().to_pylist()

    assert counted == duckdb_made.label_counts.to_pyarrow().to_pylist()[0]
    assert min(counted["positive"], counted["labelled"] - counted["positive"], counted["ineligible"]) > 3
    assert counted["contradicted"] == 0


def test_the_history_has_what_is_hard(duckdb_made: Made) -> None:
    sessions = duckdb_made.sessions.to_pandas()

    assert len(sessions) > len(duckdb_made.known.to_pandas()) > 100
    assert sessions.duration_s.max() == 24 * 3600
    assert sessions.started_at.min().year == 1970
    assert sessions.isna().any().sum() == 9
    assert duckdb_made.labels.to_pandas().churned.value_counts().min() > 5


def test_frames_to_learn_from_are_those_of_duckdb(spark_made: Made, duckdb_made: Made) -> None:
    found, expected = (made.snapshot.order_by("user_id").to_pandas() for made in (spark_made, duckdb_made))

    pd.testing.assert_frame_equal(found, expected)


# --- the same audiences ---


def allowed(made: Made) -> tuple[list[Row], list[Row]]:
    """Return who of the history consents to what, and who is held out of what where."""
    answers = [{"user_id": f"ü{user}", "attribute": f"{CONSENT}mail", "value": " Yes"} for user in range(0, 60, 3)]
    table = pa.Table.from_pylist(answers, ATTRIBUTES.schema.to_pyarrow())
    attributes = made.engine.create_table("answers", table, temp=True)
    purposes = {
        "ads": PurposeSettings(granted_by=["login", "search"], withdrawn_by=["refund"]),
        "objected": PurposeSettings(withdrawn_by=["refund"], missing="yes"),
        "mail": PurposeSettings(attribute="mail"),
    }
    agreed = consents(made.events, attributes, purposes, made.sessions)
    members = agreed.select("user_id", segment_id=agreed.purpose)
    settings = DestinationSettings(holdout_share={"ads": 0.5, "mail": 0.1})
    held = members.mutate(held_out=is_held_out(members.user_id, members.segment_id, "crm", settings, "shop"))
    key = ("user_id", "segment_id")
    rows = sorted(held.to_pyarrow().to_pylist(), key=lambda row: [row[name] for name in key])
    return rows_of(agreed, CONSENTS), rows


def test_who_consents_and_who_is_held_out_is_as_on_duckdb(spark_made: Made, duckdb_made: Made) -> None:
    agreed, held = allowed(duckdb_made)

    assert allowed(spark_made) == (agreed, held)
    assert len(agreed) == 180
    assert all(any(row["granted"] is answer for row in agreed) for answer in (True, False))
    assert any(row["held_out"] for row in held)


# --- the same lake ---


def test_each_engine_reads_what_the_other_wrote(
    spark_made: Made, duckdb_made: Made, tmp_path: Path, on_spark: Engine, on_duckdb: Engine
) -> None:
    by_spark, by_duckdb = Lake(tmp_path / "spark", engine=on_spark), Lake(tmp_path / "duckdb", engine=on_duckdb)
    by_spark.write(SNAPSHOTS, spark_made.snapshot, only=[AS_OF])
    by_spark.write(SESSIONS, spark_made.sessions)
    by_duckdb.write(SESSIONS, duckdb_made.sessions)

    sessions = rows_of(duckdb_made.sessions, SESSIONS)
    snapshot = rows_of(duckdb_made.snapshot, SNAPSHOTS)
    assert rows_of(Lake(tmp_path / "duckdb", engine=on_spark).read(SESSIONS), SESSIONS) == sessions
    assert rows_of(Lake(tmp_path / "spark", engine=on_duckdb).read(SESSIONS), SESSIONS) == sessions
    assert rows_of(Lake(tmp_path / "spark", engine=on_duckdb).read(SNAPSHOTS), SNAPSHOTS) == snapshot


def updated(engine: Engine, folder: Path) -> tuple[Sessionized, list[Row], list[Row]]:
    """Store sessions, then events that come late, then the sessions that these touch."""
    lake, events = Lake(folder, engine=engine), history()
    lake.write(EVENTS, ibis.memtable(events.slice(25)))
    update_sessions(lake, GAP)
    lake.write(EVENTS, ibis.memtable(events))
    update = update_sessions(lake, GAP)
    return update, rows_of(lake.read(SESSIONS), SESSIONS), rows_of(lake.read(ALIASES), ALIASES)


def test_late_events_change_the_same_sessions(on_spark: Any, tmp_path: Path) -> None:
    alone = spark.connect(on_spark._session.newSession())  # a rebuild drops what other tests have materialized
    update, sessions, aliases = updated(alone, tmp_path / "spark")

    assert not update.rebuilt
    assert aliases
    assert (update, sessions, aliases) == updated(engines.connect(), tmp_path / "duckdb")


# --- the same scores ---


@pytest.fixture
def in_parts(on_spark: Any) -> Iterator[Any]:
    """Hand a few users at a time to functions."""
    name = "spark.sql.execution.arrow.maxRecordsPerBatch"
    before = on_spark._session.conf.get(name)
    on_spark._session.conf.set(name, "7")
    yield on_spark
    on_spark._session.conf.set(name, before)


def test_users_scored_in_parts_are_assigned_as_if_at_once(in_parts: Any, duckdb_made: Made) -> None:
    previous = duckdb_made.snapshot.user_id.right(1).isin(list("02468")).ifelse("S01", ibis.null("string"))
    users_now = duckdb_made.snapshot.mutate(**{scoring.PREVIOUS: previous})
    snapshot = users_now.order_by("user_id").to_pandas()
    labels = duckdb_made.labels.filter(duckdb_made.labels.churned.notnull()).order_by("user_id").to_pandas()
    users = snapshot.merge(labels[["user_id", "churned"]], on="user_id")
    many = pd.concat([users.assign(user_id=users.user_id + f" {copy}") for copy in range(10)], ignore_index=True)
    many = many.astype({"churned": bool})
    churn = propensities.fit(many, many, "churned", 0, propensities.Budget(trials=1)).model
    given = in_parts.create_table("users", users_now.to_pyarrow())
    asked = [
        rules.Rule("rich", "", "", "revenue_total >= p66.6 and not session_count < p10"),
        rules.Rule(
            "of_pro", "", "", "plan in ('plan 1', 'plan 2') and (recency_days between p5 and p95 or device is null)"
        ),
        rules.Rule("beaten", "", "", "revenue_per_purchase > p100"),
        *(rule for rule in rules.SHIPPED if not rule.condition.count("_90d")),
    ]
    lines = rfm.fit(snapshot)
    ready, off = rules.prepare(asked, given, lines)
    assert (ready, off) == rules.prepare(asked, duckdb_made.snapshot, lines) == rules.prepare(asked, snapshot, lines)
    assert "high_value_customers" in {one.rule.name for one in ready}
    serving = scoring.Serving(
        segments=segments.fit(snapshot, 2, 3, seed=0),
        segments_version=3,
        dwell_margin=0.5,
        propensities={"churn": scoring.Propensity(churn, 7, SEEN_IN_7_DAYS)},
        rules=ready,
        rfm=lines,
        holdout_share=0.3,
        salt="shop",
    )

    found = scoring.rank(in_parts.map_frames(given, partial(scoring.score_part, serving=serving), ASSIGNMENTS.schema))

    expected = scoring.score(snapshot, serving)
    assert 5 < expected["churn_percentile"].null_count < 50
    assert 0 < pc.sum(pc.equal(expected["segment_strength"], 0)).as_py() < len(expected)  # some only stay
    assert len(expected["churn_percentile"].unique()) > 2
    assert len({tuple(names) for names in expected["rule_segments"].to_pylist()}) > 5
    assert len(expected["lifecycle_stage"].unique()) > 2
    assert len(expected["rfm_5"].unique()) > 5
    assert pc.max(pc.list_value_length(expected["segment_strengths"])).as_py() > 1
    assert rows_of(found, ASSIGNMENTS) == expected.to_pylist()


def test_the_job_scores_on_spark_what_it_scores_on_duckdb(
    ran: Ran, on_spark: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = shutil.copytree(ran.configuration.folder, tmp_path / "shop") / "habitus.toml"
    with Lake(load(config).lake) as lake:
        [as_of] = lake.partitions(ASSIGNMENTS)
        week_before = as_of - timedelta(days=7)
        same = lake.read(ASSIGNMENTS).mutate(as_of=ibis.literal(week_before, ASSIGNMENTS.schema["as_of"]))
        lake.write(ASSIGNMENTS, same, only=[week_before])
    monkeypatch.setenv("HABITUS_ENGINE", "spark")
    scored = assign_users.fn(str(config), None)

    with ran.configuration.open_lake() as before, Lake(load(config).lake) as after:
        found = after.read(ASSIGNMENTS, only=[as_of])
        assert rows_of(found, ASSIGNMENTS) == rows_of(before.read(ASSIGNMENTS), ASSIGNMENTS)
        assert after.version(ASSIGNMENTS) == before.version(ASSIGNMENTS) + 2
    assert scored.users == ran.result["scored"]["users"]


PLANS = Table("plans", ibis.schema({"plan": "!string", "price": "float64", "features": "!array<string>"}), ("plan",))


def plans(*rows: tuple[str | None, float | None, list[str | None]]) -> ir.Table:
    dicts = [dict(zip(PLANS.schema.names, row, strict=True)) for row in rows]
    fields = [field.with_nullable(True) for field in PLANS.schema.to_pyarrow()]
    return ibis.memtable(pa.Table.from_pylist(dicts, schema=pa.schema(fields)))


def test_the_same_rows_commit_nothing(on_spark: Engine, tmp_path: Path) -> None:
    lake = Lake(tmp_path / "a [lake]", engine=on_spark)
    rows: list[Any] = [("pro", 9.99, ["export", None, "it's"]), ("free", None, [])]

    assert lake.write(PLANS, plans(*rows))
    assert not lake.write(PLANS, plans(*rows[::-1]))
    assert sorted(map(tuple, lake.read(PLANS).to_pandas().to_numpy().tolist()))[1][0] == "pro"


def test_what_breaks_a_contract_is_not_written(on_spark: Engine, tmp_path: Path) -> None:
    lake = Lake(tmp_path, engine=on_spark)
    with pytest.raises(ContractError, match=r"plans: 1 rows have no plan; 1 rows repeat a key \(plan\)"):
        lake.write(PLANS, plans((None, 1.0, []), ("pro", 1.0, []), ("pro", 2.0, [])))
    assert not lake.has(PLANS)


def test_a_closed_lake_runs_no_more_and_others_do(on_spark: Engine, tmp_path: Path) -> None:
    with Lake(tmp_path, engine=on_spark) as lake:
        lake.write(PLANS, plans(("pro", 1.0, [])))
    with Lake(tmp_path, engine=spark.connect()) as other:
        rows = other.read(PLANS)
        assert rows.count().to_pyarrow().as_py() == 1
    with pytest.raises(Exception, match="cannot be found"):
        rows.to_pyarrow()
