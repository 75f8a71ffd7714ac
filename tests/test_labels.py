import uuid
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import ibis.expr.types as ir
import pyarrow as pa
import pytest
from histories import events_of, instant
from ibis.backends.duckdb import Backend as DuckDB
from pydantic import ValidationError

from features.labels import (
    LABELS,
    ChurnSettings,
    ConversionSettings,
    LabelSettings,
    Since,
    label,
    labels_table,
    snapshot_dates,
)
from features.snapshots import FEATURES
from features.table import TIME

Row = dict[str, Any]

AS_OF = "2024-03-01"
CHURN_ENDS = "2024-03-29"
CONVERSION_ENDS = "2024-03-08"
LATER = "2024-06-01"
A_MICROSECOND = timedelta(microseconds=1)


def at(time: str | datetime, event_name: str = "page_view", **columns: object) -> Row:
    return {"occurred_at": time, "event_name": event_name} | columns


def snapshot_of(engine: DuckDB, users: list[tuple[str, str, float]]) -> ir.Table:
    """Make of (user_id, as_of, recency_days) what a label needs of a snapshot."""
    names = ("user_id", "as_of", "recency_days")
    rows = [(user_id, instant(as_of), recency_days) for user_id, as_of, recency_days in users]
    schema = pa.schema([("user_id", pa.string()), ("as_of", TIME.to_pyarrow()), ("recency_days", pa.float64())])
    table = pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows], schema)
    return engine.create_table(f"snapshot_{uuid.uuid4().hex}", table, temp=True)


def labels_of(
    engine: DuckDB,
    rows: list[Row],
    settings: LabelSettings | None = None,
    known_at: str | datetime = LATER,
    users: list[tuple[str, str, float]] | None = None,
) -> list[tuple[str, str, bool | None, bool | None]]:
    """Label users; list (user_id, day of as_of, churned, converted)."""
    made = label(
        snapshot_of(engine, users if users is not None else [("u", AS_OF, 1.0)]),
        events_of(engine, rows),
        instant(known_at),
        settings or LabelSettings(),
    )
    rows = made.to_pyarrow().to_pylist()
    return sorted((r["user_id"], f"{r['as_of']:%Y-%m-%d}", r["churned"], r["converted"]) for r in rows)


def churned(engine: DuckDB, rows: list[Row], settings: LabelSettings | None = None, **options: Any) -> bool | None:
    [(_, _, churned, _)] = labels_of(engine, rows, settings, **options)
    return churned


def converted(engine: DuckDB, rows: list[Row], settings: LabelSettings | None = None, **options: Any) -> bool | None:
    [(_, _, _, converted)] = labels_of(engine, rows, settings, **options)
    return converted


def labels_by_user(
    engine: DuckDB, histories: dict[str, list[Row]], settings: LabelSettings, **options: Any
) -> dict[str, tuple[bool | None, bool | None]]:
    """Label users by their histories; return (churned, converted) of each."""
    rows = [row | {"user_id": user} for user, history in histories.items() for row in history]
    users = [(user, AS_OF, 1.0) for user in histories]
    found = labels_of(engine, rows, settings, users=users, **options)
    return {user: (churned, converted) for user, _, churned, converted in found}


# --- the window ---


def test_a_user_with_no_event_ever_after_is_churned_and_not_converted(engine: DuckDB) -> None:
    assert labels_of(engine, [at("2024-02-20")]) == [("u", AS_OF, True, False)]


def test_a_user_with_no_event_at_all_is_churned_and_not_converted(engine: DuckDB) -> None:
    assert labels_of(engine, []) == [("u", AS_OF, True, False)]


def test_an_event_in_the_window_counts_though_another_follows_it_before_the_next_window(engine: DuckDB) -> None:
    users = [("u", AS_OF, 1.0), ("u", "2024-04-15", 1.0)]

    assert labels_of(engine, [at("2024-03-05"), at("2024-04-10")], users=users) == [
        ("u", AS_OF, False, False),
        ("u", "2024-04-15", True, False),
    ]


def test_an_event_exactly_at_the_end_of_a_window_is_outside_where_another_window_follows(engine: DuckDB) -> None:
    users = [("u", AS_OF, 1.0), ("u", "2024-04-15", 1.0)]

    assert labels_of(engine, [at(CHURN_ENDS)], users=users) == [
        ("u", AS_OF, True, False),
        ("u", "2024-04-15", True, False),
    ]


def test_an_event_exactly_at_as_of_is_in_the_window(engine: DuckDB) -> None:
    assert labels_of(engine, [at(AS_OF, "purchase")]) == [("u", AS_OF, False, True)]


def test_an_event_a_microsecond_before_as_of_is_not(engine: DuckDB) -> None:
    assert labels_of(engine, [at(instant(AS_OF) - A_MICROSECOND, "purchase")]) == [("u", AS_OF, True, False)]


def test_an_event_exactly_at_the_end_of_the_churn_window_is_outside(engine: DuckDB) -> None:
    assert churned(engine, [at(CHURN_ENDS)]) is True


def test_an_event_a_microsecond_before_the_end_of_the_churn_window_is_inside(engine: DuckDB) -> None:
    assert churned(engine, [at(instant(CHURN_ENDS) - A_MICROSECOND)]) is False


def test_a_purchase_exactly_at_the_end_of_the_conversion_window_is_outside(engine: DuckDB) -> None:
    assert converted(engine, [at(CONVERSION_ENDS, "purchase")]) is False


def test_a_purchase_a_microsecond_before_the_end_of_the_conversion_window_is_inside(engine: DuckDB) -> None:
    assert converted(engine, [at(instant(CONVERSION_ENDS) - A_MICROSECOND, "purchase")]) is True


DELAYED = LabelSettings(delay_days=2)


def test_an_event_exactly_at_as_of_plus_the_delay_is_in_the_window(engine: DuckDB) -> None:
    assert labels_of(engine, [at("2024-03-03", "purchase")], DELAYED) == [("u", AS_OF, False, True)]


def test_an_event_during_the_delay_is_not(engine: DuckDB) -> None:
    during = [at(AS_OF, "purchase"), at(instant("2024-03-03") - A_MICROSECOND, "purchase")]

    assert labels_of(engine, during, DELAYED) == [("u", AS_OF, True, False)]


def test_the_delay_moves_the_end_of_the_windows_too(engine: DuckDB) -> None:
    histories = {
        "back in time": [at("2024-03-30T23:59")],
        "back too late": [at("2024-03-31")],
        "bought in time": [at("2024-03-09T23:59", "purchase")],
        "bought too late": [at("2024-03-10", "purchase")],
    }

    assert labels_by_user(engine, histories, DELAYED) == {
        "back in time": (False, False),
        "back too late": (True, False),
        "bought in time": (False, True),
        "bought too late": (False, False),
    }


def test_horizons_are_days_and_parts_of_days(engine: DuckDB) -> None:
    settings = LabelSettings(
        delay_days=0.25, churn=ChurnSettings(horizon_days=0.5), conversion=ConversionSettings(horizon_days=1.5)
    )

    histories = {
        "outside": [at("2024-03-01T05:59"), at("2024-03-01T18:00")],
        "back in time": [at("2024-03-01T17:59")],
        "bought in time": [at("2024-03-02T17:59", "purchase")],
    }

    assert labels_by_user(engine, histories, settings) == {
        "outside": (True, False),
        "back in time": (False, False),
        "bought in time": (True, True),
    }


# --- which events ---


def test_any_event_keeps_a_user_unless_events_are_named(engine: DuckDB) -> None:
    assert churned(engine, [at("2024-03-05", "whatever")]) is False


def test_events_of_other_names_do_not_keep_a_user_where_events_are_named(engine: DuckDB) -> None:
    settings = LabelSettings(churn=ChurnSettings(events=["login", "purchase"]))

    histories = {
        "looked": [at("2024-03-05", "page_view"), at("2024-02-20", "login")],
        "bought": [at("2024-03-05", "purchase")],
    }

    assert labels_by_user(engine, histories, settings) == {"looked": (True, False), "bought": (False, True)}


def test_events_of_other_names_do_not_convert(engine: DuckDB) -> None:
    assert converted(engine, [at("2024-03-05", "add_to_cart"), at("2024-03-05", "refund")]) is False


def test_each_of_the_named_events_converts(engine: DuckDB) -> None:
    settings = LabelSettings(conversion=ConversionSettings(events=["sign_up", "trial"]))

    histories = {"tried": [at("2024-03-05", "trial")], "bought": [at("2024-03-05", "purchase")]}

    assert labels_by_user(engine, histories, settings) == {"tried": (False, True), "bought": (False, False)}


def test_events_of_other_users_do_not_count(engine: DuckDB) -> None:
    rows = [at("2024-03-05", "purchase", user_id="v"), at("2024-03-05", "purchase", user_id="w")]
    users = [("u", AS_OF, 1.0), ("v", AS_OF, 1.0)]

    assert labels_of(engine, rows, users=users) == [("u", AS_OF, True, False), ("v", AS_OF, False, True)]


# --- who is eligible ---


def test_a_user_seen_exactly_so_many_days_ago_is_eligible(engine: DuckDB) -> None:
    assert churned(engine, [], users=[("u", AS_OF, 28.0)]) is True


def test_a_user_who_left_longer_ago_is_not_predicted_to_leave(engine: DuckDB) -> None:
    users = [(user, AS_OF, 28.0 + 1 / 86_400_000_000) for user in ("bought", "gone")]
    rows = [at("2024-03-05", "purchase", user_id="bought")]

    assert labels_of(engine, rows, users=users) == [("bought", AS_OF, None, True), ("gone", AS_OF, None, False)]


def test_everybody_is_eligible_for_churn_where_it_says_so(engine: DuckDB) -> None:
    settings = LabelSettings(churn=ChurnSettings(eligible_days=None))

    assert churned(engine, [], settings, users=[("u", AS_OF, 400.0)]) is True


def test_conversion_may_be_only_of_users_seen_lately(engine: DuckDB) -> None:
    settings = LabelSettings(conversion=ConversionSettings(eligible_days=3))
    users = [("here", AS_OF, 3.0), ("gone", AS_OF, 3.5)]

    assert labels_of(engine, [], settings, users=users) == [("gone", AS_OF, True, None), ("here", AS_OF, True, False)]


def test_a_user_who_is_eligible_for_neither_keeps_a_row_without_labels(engine: DuckDB) -> None:
    settings = LabelSettings(conversion=ConversionSettings(eligible_days=28))

    assert labels_of(engine, [], settings, users=[("u", AS_OF, 29.0)]) == [("u", AS_OF, None, None)]


# --- what was known ---


def test_a_label_is_complete_exactly_at_its_windows_end(engine: DuckDB) -> None:
    assert labels_of(engine, [], known_at=CHURN_ENDS) == [("u", AS_OF, True, False)]


def test_a_label_whose_window_is_not_complete_is_null(engine: DuckDB) -> None:
    known_at = instant(CHURN_ENDS) - A_MICROSECOND
    histories = {"gone": [], "bought": [at("2024-03-05", "purchase")]}

    assert labels_by_user(engine, histories, LabelSettings(), known_at=known_at) == {
        "gone": (None, False),
        "bought": (None, True),
    }


def test_the_shorter_label_is_there_before_the_longer(engine: DuckDB) -> None:
    assert labels_of(engine, [], known_at=CONVERSION_ENDS) == [("u", AS_OF, None, False)]


def test_a_row_without_any_complete_label_is_left_out(engine: DuckDB) -> None:
    known_at = instant(CONVERSION_ENDS) - A_MICROSECOND

    assert labels_of(engine, [at("2024-03-05", "purchase")], known_at=known_at) == []


def test_churn_may_be_complete_before_conversion(engine: DuckDB) -> None:
    settings = LabelSettings(conversion=ConversionSettings(horizon_days=60))

    assert labels_of(engine, [], settings, known_at=CHURN_ENDS) == [("u", AS_OF, True, None)]


def test_a_delay_puts_off_when_a_label_is_complete(engine: DuckDB) -> None:
    assert labels_of(engine, [], DELAYED, known_at="2024-03-09T23:59") == []
    assert labels_of(engine, [], DELAYED, known_at="2024-03-10") == [("u", AS_OF, None, False)]
    assert labels_of(engine, [], DELAYED, known_at="2024-03-31") == [("u", AS_OF, True, False)]


def test_an_event_learnt_of_later_is_not_known(engine: DuckDB) -> None:
    late = [at("2024-03-05", "purchase", ingested_at=instant(LATER) + A_MICROSECOND)]

    assert labels_of(engine, late) == [("u", AS_OF, True, False)]


def test_an_event_learnt_of_just_then_is_known(engine: DuckDB) -> None:
    assert labels_of(engine, [at("2024-03-05", "purchase", ingested_at=LATER)]) == [("u", AS_OF, False, True)]


def test_what_is_known_may_be_told_in_any_time_zone(engine: DuckDB) -> None:
    assert labels_of(engine, [], known_at="2024-03-29T01:00+02:00") == [("u", AS_OF, None, False)]
    assert labels_of(engine, [], known_at="2024-03-29T02:00+02:00") == [("u", AS_OF, True, False)]


# --- labels by name ---


def further(**sections: Any) -> LabelSettings:
    return LabelSettings.model_validate(sections)


def answers(
    engine: DuckDB, rows: list[Row], settings: LabelSettings, known_at: str | datetime = LATER, **features: float | None
) -> Row:
    """Label one user with these features; return what is known of each label."""
    [found] = answers_by_user(engine, rows, settings, {"u": features}, known_at)
    return found


def answers_by_user(
    engine: DuckDB,
    rows: list[Row],
    settings: LabelSettings,
    users: dict[str, dict[str, float | None]],
    known_at: str | datetime = LATER,
) -> list[Row]:
    """Label users, each with some features; list what is known of each label."""
    names = {name: pa.float64() for features in users.values() for name in features}
    schema = pa.schema([("user_id", pa.string()), ("as_of", TIME.to_pyarrow()), *names.items()])
    given = [{"user_id": user, "as_of": instant(AS_OF)} | features for user, features in users.items()]
    snapshot = engine.create_table(f"snapshot_{uuid.uuid4().hex}", pa.Table.from_pylist(given, schema), temp=True)
    made = label(snapshot, events_of(engine, rows), instant(known_at), settings).to_pyarrow().to_pylist()
    by_user = {row.pop("user_id"): {name: row[name] for name in row if name != "as_of"} for row in made}
    return [by_user[user] for user in users]


NO_PURCHASE = {
    "kind": "churn",
    "horizon_days": 90,
    "events": ["purchase"],
    "eligible_days": 90,
    "eligible_by": "purchase_recency_days",
}


def test_a_further_label_is_a_column_of_its_name(engine: DuckDB) -> None:
    settings = further(churn_7d={"kind": "churn", "horizon_days": 7}, trial={"kind": "conversion", "events": ["trial"]})

    found = answers(engine, [at("2024-03-05", "trial"), at("2024-03-20")], settings, recency_days=1.0)

    assert found == {"churned": False, "converted": False, "churn_7d": False, "trial": True}
    assert labels_table(settings.named).schema.names == ("user_id", "as_of", *found)


def test_without_further_labels_the_contract_is_as_it_was() -> None:
    assert labels_table(LabelSettings().named) == labels_table(()) == LABELS


@pytest.mark.parametrize(
    ("time", "known_at", "inside", "complete"),
    [
        ("2024-03-02T23:59:59.999999", LATER, False, True),
        ("2024-03-03T00:00:00.000000", LATER, True, True),
        ("2024-03-09T23:59:59.999999", LATER, True, True),
        ("2024-03-10T00:00:00.000000", LATER, False, True),
        ("2024-03-05T00:00:00.000000", "2024-03-10", True, True),
        ("2024-03-05T00:00:00.000000", "2024-03-09T23:59:59.999999", True, False),
    ],
)
def test_a_further_label_has_the_same_borders(
    engine: DuckDB, time: str, known_at: str, inside: bool, complete: bool
) -> None:
    window = {"horizon_days": 7, "delay_days": 2}
    settings = further(churn={"horizon_days": 1}, gone={"kind": "churn"} | window, came={"kind": "conversion"} | window)

    found = answers(engine, [at(time, "purchase")], settings, known_at, recency_days=1.0)

    assert found["gone"] is (not inside if complete else None)
    assert found["came"] is (inside if complete else None)


def test_a_label_of_buyers_is_not_asked_of_those_who_never_bought(engine: DuckDB) -> None:
    settings = further(no_purchase_90d=NO_PURCHASE)
    users = {f"{days}": {"recency_days": 1.0, "purchase_recency_days": days} for days in (90.0, 90.1, None)}
    rows = [at("2024-03-05", user_id=user) for user in users]

    found = answers_by_user(engine, rows, settings, users)

    assert [row["no_purchase_90d"] for row in found] == [True, None, None]


def test_without_a_limit_a_label_is_asked_of_all_who_ever_bought(engine: DuckDB) -> None:
    settings = further(no_purchase_90d=NO_PURCHASE | {"eligible_days": None})
    users = {f"{days}": {"recency_days": 1.0, "purchase_recency_days": days} for days in (900.0, None)}

    found = answers_by_user(engine, [], settings, users)

    assert [row["no_purchase_90d"] for row in found] == [True, None]


def test_a_label_has_the_delay_of_all_unless_it_has_its_own(engine: DuckDB) -> None:
    settings = further(delay_days=2, now={"kind": "conversion", "delay_days": 0})

    found = answers(engine, [at(AS_OF, "purchase")], settings, recency_days=1.0)

    assert (found["converted"], found["now"]) == (False, True)


@pytest.mark.parametrize("eligible_days", [7, None])
def test_whom_a_label_is_asked_of_is_the_same_of_a_table_and_of_a_frame(
    engine: DuckDB, eligible_days: float | None
) -> None:
    asked = further(x=NO_PURCHASE | {"eligible_days": eligible_days}).named["x"]
    rows = {"purchase_recency_days": [0.0, 7.0, 7.000001, None]}
    table = engine.create_table("users", pa.table(rows), temp=True)
    expected = [True, True, eligible_days is None, False]

    assert asked.is_eligible(table.to_pandas()).tolist() == expected
    assert table.select(asked=asked.is_eligible(table)).to_pyarrow()["asked"].to_pylist() == expected


def test_eligibility_goes_by_features_of_a_snapshot() -> None:
    pauses = {"return_absence_days"}  # which say nothing of how long ago something was

    assert set(get_args(Since)) == {name for name in FEATURES if name.endswith("_days")} - pauses


# --- several snapshots at once ---


def test_each_as_of_has_windows_of_its_own(engine: DuckDB) -> None:
    users = [("u", "2024-03-01", 1.0), ("u", "2024-03-08", 8.0), ("u", "2024-04-01", 32.0), ("v", "2024-03-08", 1.0)]
    rows = [at("2024-03-05", "purchase"), at("2024-04-03", "purchase")]

    assert labels_of(engine, rows, users=users) == [
        ("u", "2024-03-01", False, True),
        ("u", "2024-03-08", False, False),
        ("u", "2024-04-01", None, True),
        ("v", "2024-03-08", True, False),
    ]


def test_each_as_of_is_complete_by_itself(engine: DuckDB) -> None:
    users = [("u", "2024-03-01", 1.0), ("u", "2024-03-20", 1.0), ("u", "2024-03-28", 1.0)]

    assert labels_of(engine, [], users=users, known_at="2024-03-31") == [
        ("u", "2024-03-01", True, False),
        ("u", "2024-03-20", None, False),
    ]


def test_without_a_snapshot_there_are_no_labels(engine: DuckDB) -> None:
    assert labels_of(engine, [at("2024-03-05")], users=[]) == []


def test_many_events_make_one_label(engine: DuckDB) -> None:
    rows = [at("2024-03-05", "purchase"), at("2024-03-05", "purchase"), at("2024-03-06", "purchase")]

    assert labels_of(engine, rows) == [("u", AS_OF, False, True)]


def test_labels_keep_their_contract(engine: DuckDB) -> None:
    users = [("u", AS_OF, 1.0), ("v", AS_OF, 40.0)]
    made = label(snapshot_of(engine, users), events_of(engine, [at(AS_OF)]), instant(LATER), LabelSettings())

    assert LABELS.check(made).columns == tuple(LABELS.schema.names)
    assert made.to_pyarrow().schema.types == LABELS.schema.to_pyarrow().types


# --- settings ---


def test_churn_is_28_days_of_those_seen_in_28_days_and_conversion_a_purchase_in_7_days_of_all() -> None:
    settings = LabelSettings()

    assert (settings.delay_days, settings.churn.horizon_days, settings.conversion.horizon_days) == (0, 28, 7)
    assert (settings.churn.eligible_days, settings.conversion.eligible_days) == (28, None)
    assert (settings.churn.events, settings.conversion.events) == ([], ["purchase"])


def test_labels_reach_as_far_as_the_delay_and_the_longer_horizon() -> None:
    assert LabelSettings().reach == timedelta(days=28)
    assert LabelSettings(delay_days=2).reach == timedelta(days=30)
    assert LabelSettings(conversion=ConversionSettings(horizon_days=60)).reach == timedelta(days=60)


def test_conversion_needs_an_event() -> None:
    with pytest.raises(ValidationError):
        ConversionSettings(events=[])


@pytest.mark.parametrize("horizon_days", [0, -7])
def test_a_horizon_is_in_the_future(horizon_days: float) -> None:
    with pytest.raises(ValidationError):
        ChurnSettings(horizon_days=horizon_days)


# --- which instants to learn from ---

LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
NOW = datetime(2024, 6, 30, tzinfo=UTC)
FOUR_WEEKS, A_WEEK = timedelta(days=28), timedelta(days=7)


def test_the_test_is_the_latest_instant_whose_labels_are_complete() -> None:
    assert snapshot_dates(NOW, LONG_AGO, FOUR_WEEKS, A_WEEK, 3).test == datetime(2024, 6, 2, tzinfo=UTC)


def test_training_goes_back_from_one_reach_before_the_validation_oldest_first() -> None:
    assert snapshot_dates(NOW, LONG_AGO, FOUR_WEEKS, A_WEEK, 3).train == (
        datetime(2024, 3, 24, tzinfo=UTC),
        datetime(2024, 3, 31, tzinfo=UTC),
        datetime(2024, 4, 7, tzinfo=UTC),
    )


@pytest.mark.parametrize("reach_days", [0.5, 7, 28, 60])
@pytest.mark.parametrize("every_days", [1, 7, 30])
def test_no_label_reaches_past_the_instant_of_the_next_purpose_and_none_past_now(
    reach_days: float, every_days: float
) -> None:
    reach = timedelta(days=reach_days)
    dates = snapshot_dates(NOW, LONG_AGO, reach, timedelta(days=every_days), 12)

    assert len(dates.train) == 12
    assert max(dates.train) + reach <= dates.validation
    assert dates.validation + reach <= dates.test
    assert dates.test + reach <= NOW


def test_training_does_not_go_back_to_before_the_first_event() -> None:
    first_event_at = datetime(2024, 3, 30, 12, tzinfo=UTC)

    assert snapshot_dates(NOW, first_event_at, FOUR_WEEKS, A_WEEK, 3).train == (
        datetime(2024, 3, 31, tzinfo=UTC),
        datetime(2024, 4, 7, tzinfo=UTC),
    )


def test_an_instant_exactly_at_the_first_event_has_nothing_before_it() -> None:
    first_event_at = datetime(2024, 3, 31, tzinfo=UTC)

    assert snapshot_dates(NOW, first_event_at, FOUR_WEEKS, A_WEEK, 3).train == (datetime(2024, 4, 7, tzinfo=UTC),)


def test_a_short_history_leaves_nothing_to_train_on() -> None:
    assert snapshot_dates(NOW, datetime(2024, 5, 20, tzinfo=UTC), FOUR_WEEKS, A_WEEK, 3).train == ()


@pytest.mark.parametrize("name", ["known_us", "acted_0", "begun"])
def test_a_label_may_be_called_like_what_only_the_making_of_labels_needs(engine: DuckDB, name: str) -> None:
    settings = LabelSettings.model_validate({name: {"kind": "conversion", "events": ["page_view"]}})
    snapshot = snapshot_of(engine, [("u", AS_OF, 1.0)])
    made = label(snapshot, events_of(engine, [at("2024-03-02")]), instant(LATER), settings)

    assert made.to_pyarrow()[name].to_pylist() == [True]
