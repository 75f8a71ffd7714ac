from collections.abc import Sequence
from typing import Any

import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pytest
from histories import instant
from hypothesis import given
from hypothesis import strategies as st
from ibis.backends.duckdb import Backend as DuckDB
from laws import law

from publish.assignments import ASSIGNMENTS
from publish.audiences import AUDIENCES, allow, count_refused, members_of, rows_for
from publish.destination import DestinationSettings

AS_OF = instant("2024-06-30T05:00:00")
DEFAULTS = {
    **{"as_of": AS_OF, "segment_id": None, "rule_segments": [], "lifecycle_stage": "active"},
    **{"churn_reasons": [], "conversion_reasons": [], "holdout": False, "held_out_of": [], "segment_strengths": []},
}
OPEN = DestinationSettings(purposes=[])


def assignments_of(engine: DuckDB, *rows: dict[str, Any]) -> ir.Table:
    """Make ASSIGNMENTS of rows that name only what matters."""
    whole = [DEFAULTS | row for row in rows]
    for row in whole:
        row.setdefault("segment_name", row["segment_id"] and f"the {row['segment_id']}")
    return _table(engine, whole, ASSIGNMENTS.schema)


def consents_of(engine: DuckDB, granted: Sequence[tuple[str, str]] = ()) -> ir.Table:
    rows = [{"user_id": user, "purpose": purpose, "granted": True} for user, purpose in granted]
    return _table(engine, rows, ibis.schema({"user_id": "string", "purpose": "string", "granted": "boolean"}))


def _table(engine: DuckDB, rows: list[dict[str, Any]], schema: ibis.Schema) -> ir.Table:
    arrow = pa.Table.from_pylist(rows, schema=schema.to_pyarrow())
    return engine.create_table(ibis.util.gen_name("rows"), arrow, temp=True)


def allowed(
    engine: DuckDB,
    rows: Sequence[dict[str, Any]],
    granted: Sequence[tuple[str, str]] = (),
    **destinations: DestinationSettings,
) -> ir.Table:
    return allow(assignments_of(engine, *rows), consents_of(engine, granted), destinations, "shop")


def known(audiences: ir.Table, destination: str = "crm") -> dict[str, list[str] | str]:
    """Return what a destination knows of each user: the segments, or why it is refused."""
    rows = audiences.filter(audiences.destination == destination).to_pyarrow().to_pylist()
    return {row["user_id"]: row["refused"] or row["segments"] for row in rows}


ADA: dict[str, Any] = {"user_id": "ada", "segment_id": "S01", "rule_segments": ["buyers", "new"]}
BEN: dict[str, Any] = {"user_id": "ben", "segment_id": "S02"}


def test_a_destination_knows_the_discovered_and_the_named_segments_of_a_user(engine: DuckDB) -> None:
    assert known(allowed(engine, [ADA, BEN], crm=OPEN)) == {"ada": ["S01", "buyers", "new"], "ben": ["S02"]}


def test_a_user_without_segments_is_known_in_none(engine: DuckDB) -> None:
    assert known(allowed(engine, [{"user_id": "cleo"}], crm=OPEN)) == {"cleo": []}


def test_audiences_come_under_their_contract(engine: DuckDB) -> None:
    found = allowed(engine, [ADA], crm=OPEN)
    assert AUDIENCES.check(found).schema() == found.schema()


def test_without_users_there_are_no_audiences(engine: DuckDB) -> None:
    assert known(allowed(engine, [], crm=OPEN)) == {}


def test_without_destinations_there_are_no_audiences(engine: DuckDB) -> None:
    assert AUDIENCES.check(allowed(engine, [ADA])).count().execute() == 0


def test_a_user_who_did_not_consent_is_refused(engine: DuckDB) -> None:
    found = allowed(engine, [ADA, BEN], [("ben", "ads")], crm=DestinationSettings(purposes=["ads"]))
    assert known(found) == {"ada": "consent", "ben": ["S02"]}


def test_a_user_has_to_consent_to_all_purposes(engine: DuckDB) -> None:
    granted = [("ada", "ads"), ("ada", "profiles"), ("ben", "ads")]
    found = allowed(engine, [ADA, BEN], granted, crm=DestinationSettings(purposes=["ads", "profiles"]))
    assert known(found)["ben"] == "consent"
    assert known(found)["ada"] != "consent"


def test_each_destination_asks_for_its_own_consents(engine: DuckDB) -> None:
    found = allowed(engine, [BEN], [("ben", "ads")], crm=DestinationSettings(purposes=["mail"]), ads=OPEN)
    assert (known(found, "crm"), known(found, "ads")) == ({"ben": "consent"}, {"ben": ["S02"]})


def test_who_is_held_out_of_everything_is_refused(engine: DuckDB) -> None:
    assert known(allowed(engine, [ADA | {"holdout": True}], crm=OPEN)) == {"ada": "holdout"}


def test_a_destination_gets_only_the_segments_it_asks_for(engine: DuckDB) -> None:
    found = allowed(engine, [ADA, BEN], crm=DestinationSettings(purposes=[], segments=["buyers", "S02"]))
    assert known(found) == {"ada": ["buyers"], "ben": ["S02"]}


def test_a_destination_that_asks_for_no_segments_gets_none(engine: DuckDB) -> None:
    assert known(allowed(engine, [ADA], crm=DestinationSettings(purposes=[], segments=[]))) == {"ada": []}


def test_an_audience_under_the_minimum_is_held_back(engine: DuckDB) -> None:
    rows = [ADA, BEN, {"user_id": "cleo", "segment_id": "S02"}]
    found = allowed(engine, rows, crm=DestinationSettings(purposes=[], members_min=2))
    assert known(found) == {"ada": [], "ben": ["S02"], "cleo": ["S02"]}
    assert count_refused("crm", found)["held_back"] == {"S01": 1, "buyers": 1, "new": 1}


def test_those_without_consent_do_not_make_an_audience_larger(engine: DuckDB) -> None:
    rows = [BEN, {"user_id": "cleo", "segment_id": "S02"}]
    found = allowed(engine, rows, [("ben", "ads")], crm=DestinationSettings(purposes=["ads"], members_min=2))
    assert known(found) == {"ben": [], "cleo": "consent"}


MANY = [{"user_id": f"user-{i}", "segment_id": "S01", "rule_segments": ["new"]} for i in range(400)]


def test_a_share_of_each_segment_is_held_out_by_segment(engine: DuckDB) -> None:
    found = allowed(engine, MANY, crm=DestinationSettings(purposes=[], holdout_share={"S01": 0.5}))
    sizes = members_of("crm", found).segment_id.value_counts(name="users").to_pyarrow().to_pylist()
    by_segment = {row["segment_id"]: row["users"] for row in sizes}
    assert by_segment["new"] == 400
    assert by_segment["S01"] == pytest.approx(200, abs=40)
    assert count_refused("crm", found)["held_out"] == {"S01": 400 - by_segment["S01"]}


def test_what_is_refused_is_counted_by_reason(engine: DuckDB) -> None:
    rows = [ADA, BEN | {"holdout": True}, {"user_id": "cleo"}]
    found = allowed(engine, rows, [("ben", "ads"), ("cleo", "ads")], crm=DestinationSettings(purposes=["ads"]))
    assert count_refused("crm", found)["users"] == {"consent": 1, "holdout": 1}


# --- the rows of a destination ---


def exported(engine: DuckDB, rows: Sequence[dict[str, Any]], settings: DestinationSettings, **row: Any) -> Any:
    """Return by user the rows that a destination gets."""
    assignments = assignments_of(engine, *rows)
    audiences = allow(assignments, consents_of(engine), {"crm": settings}, "shop")
    if row:
        audiences = audiences.mutate(**{name: ibis.literal(value, "array<string>") for name, value in row.items()})
    found = rows_for("crm", assignments, audiences, settings)
    return {row["user_id"]: row for row in ASSIGNMENTS.check(found).to_pyarrow().to_pylist()}


def test_a_destination_gets_rows_as_they_are_where_it_may(engine: DuckDB) -> None:
    [row] = assignments_of(engine, ADA).to_pyarrow().to_pylist()
    assert exported(engine, [ADA], OPEN) == {"ada": row}


def test_a_row_has_only_the_segments_that_the_destination_may_know(engine: DuckDB) -> None:
    strengths = [{"segment_id": "S01", "strength": 0.7}, {"segment_id": "S02", "strength": 0.2}]
    given = ADA | {"segment_strength": 0.9, "segment_strengths": strengths, "runner_up_segment_id": "S02"}
    row = exported(engine, [given], OPEN, segments=["new"], held_out=["S01"])["ada"]
    assert (row["segment_id"], row["segment_name"], row["segment_strength"]) == (None, None, None)
    assert (row["segment_strengths"], row["runner_up_segment_id"], row["rule_segments"]) == ([], None, ["new"])


def test_a_row_does_not_say_who_is_held_out(engine: DuckDB) -> None:
    row = exported(engine, [ADA | {"held_out_of": ["crm/S01"]}], OPEN)["ada"]
    assert (row["holdout"], row["held_out_of"]) == (False, [])


def test_who_is_held_out_of_all_their_segments_has_no_row(engine: DuckDB) -> None:
    assert exported(engine, [ADA], OPEN, segments=[], held_out=["S01", "buyers", "new"]) == {}


def test_who_is_refused_has_no_row(engine: DuckDB) -> None:
    assert exported(engine, [ADA | {"holdout": True}], OPEN) == {}


def test_a_user_without_segments_has_a_row_where_all_segments_are_asked_for(engine: DuckDB) -> None:
    assert exported(engine, [{"user_id": "cleo"}], OPEN).keys() == {"cleo"}


def test_a_user_in_none_of_the_segments_asked_for_has_no_row(engine: DuckDB) -> None:
    asked = DestinationSettings(purposes=[], segments=["S02"])
    assert exported(engine, [ADA, BEN], asked).keys() == {"ben"}


SEGMENTS = st.lists(st.sampled_from(["buyers", "new", "researchers"]), unique=True, max_size=3)
USERS = st.dictionaries(
    st.text(min_size=1, max_size=4),
    st.fixed_dictionaries(
        {
            "segment_id": st.sampled_from(["S01", "S02", None]),
            "rule_segments": SEGMENTS,
            "holdout": st.booleans(),
            "consented": st.booleans(),
        }
    ),
    max_size=12,
)
DESTINATIONS = st.builds(
    DestinationSettings,
    purposes=st.just(["ads"]),
    segments=st.none() | SEGMENTS,
    holdout_share=st.sampled_from([0, 0.3, 0.9, {"S01": 0.5}]),
    members_min=st.integers(0, 3),
)


@law(6)
@given(users=USERS, crm=DESTINATIONS)
def test_no_unconsented_and_no_held_out_id_is_in_what_leaves(
    engine: DuckDB, users: dict[str, dict[str, Any]], crm: DestinationSettings
) -> None:
    rows = [{"user_id": user} | {k: v for k, v in row.items() if k != "consented"} for user, row in users.items()]
    for row in rows:
        row["segment_strengths"] = [{"segment_id": row["segment_id"], "strength": 0.9}] if row["segment_id"] else []
    granted = [(user, "ads") for user, row in users.items() if row["consented"]]
    assignments = assignments_of(engine, *rows)
    audiences = allow(assignments, consents_of(engine, granted), {"crm": crm}, "shop")

    may = {user for user, row in users.items() if row["consented"] and not row["holdout"]}
    held_out = {row["user_id"]: row["held_out"] for row in audiences.to_pyarrow().to_pylist()}
    members = members_of("crm", audiences).to_pyarrow().to_pylist()
    exported = rows_for("crm", assignments, audiences, crm).to_pyarrow().to_pylist()

    assert {row["user_id"] for row in exported} | {row["user_id"] for row in members} <= may
    for row in members:
        assert row["segment_id"] not in held_out[row["user_id"]]
    known = {(row["user_id"], row["segment_id"]) for row in members}
    for row in exported:
        told = {row["segment_id"], row["runner_up_segment_id"], *row["rule_segments"]} - {None}
        told |= {one["segment_id"] for one in row["segment_strengths"]}
        assert {(row["user_id"], segment_id) for segment_id in told} <= known
    sizes = [sum(segment_id == other for _, other in known) for _, segment_id in known]
    assert all(size >= crm.members_min for size in sizes)
