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

from publish.audiences import AUDIENCES
from publish.changes import CHANGES, REASONS, Causes, compare, replay, without_names

AS_OF = instant("2024-06-30T05:00:00")
NAMES = {"S01": "Loyal", "S02": "Lapsing", "buyers": "Buyers", "new": "New visitors"}
CAUSES = Causes(NAMES, discovered=["S01", "S02"])


def audiences(engine: DuckDB, *rows: dict[str, Any]) -> ir.Table:
    """Make AUDIENCES of rows that name only what matters."""
    default: dict[str, Any] = {"destination": "crm", "refused": None, "segments": [], "held_out": [], "held_back": []}
    whole = [default | row for row in rows]
    arrow = pa.Table.from_pylist(whole, schema=AUDIENCES.schema.to_pyarrow())
    return engine.create_table(ibis.util.gen_name("audiences"), arrow, temp=True)


def otherwise(engine: DuckDB, **segments: list[str]) -> ir.Table:
    rows = [{"user_id": user, "segments": listed} for user, listed in segments.items()]
    schema = ibis.schema({"user_id": "string", "segments": "array<string>"})
    return engine.create_table(ibis.util.gen_name("otherwise"), pa.Table.from_pylist(rows, schema.to_pyarrow()))


def told(
    engine: DuckDB, before: list[dict[str, Any]], after: list[dict[str, Any]], causes: Causes = CAUSES
) -> set[tuple[str, ...]]:
    """Return user, change, segment and reason of each change."""
    changes = compare(audiences(engine, *before), audiences(engine, *after), causes, 2, AS_OF)
    rows = CHANGES.check(changes).to_pyarrow().to_pylist()
    return {(row["user_id"], row["change"], row["segment_id"], row["reason"]) for row in rows}


def ada(*segments: str, **more: Any) -> list[dict[str, Any]]:
    return [{"user_id": "ada", "segments": list(segments)} | more]


def test_who_stays_is_not_in_the_feed(engine: DuckDB) -> None:
    assert told(engine, ada("S01", "new"), ada("S01", "new")) == set()


def test_at_the_first_version_everyone_enters_as_a_new_user(engine: DuckDB) -> None:
    assert told(engine, [], ada("S01", "new")) == {
        ("ada", "entered", "S01", "new_user"),
        ("ada", "entered", "new", "new_user"),
    }


def test_who_behaves_otherwise_leaves_one_segment_and_enters_another(engine: DuckDB) -> None:
    assert told(engine, ada("S01", "new"), ada("S02", "new")) == {
        ("ada", "left", "S01", "behaviour"),
        ("ada", "entered", "S02", "behaviour"),
    }


def test_a_move_between_discovered_segments_says_from_where_to_where(engine: DuckDB) -> None:
    before, after = audiences(engine, *ada("S01", "new")), audiences(engine, *ada("S02", "buyers"))
    rows = compare(before, after, CAUSES, 2, AS_OF).to_pyarrow().to_pylist()
    moves = {row["segment_id"]: (row["from_segment_id"], row["to_segment_id"]) for row in rows}
    assert moves == {"S01": ("S01", "S02"), "S02": ("S01", "S02"), "new": (None, None), "buyers": (None, None)}


def test_a_change_says_the_name_of_the_segment_its_version_and_instant(engine: DuckDB) -> None:
    [row] = compare(audiences(engine), audiences(engine, *ada("S01")), CAUSES, 7, AS_OF).to_pyarrow().to_pylist()
    assert (row["segment_name"], row["version"], row["as_of"]) == ("Loyal", 7, AS_OF)


def test_a_segment_without_a_name_goes_by_its_id(engine: DuckDB) -> None:
    [row] = compare(audiences(engine), audiences(engine, *ada("S09")), CAUSES, 7, AS_OF).to_pyarrow().to_pylist()
    assert row["segment_name"] == "S09"


def test_who_is_not_there_any_more_is_gone(engine: DuckDB) -> None:
    assert told(engine, ada("new"), []) == {("ada", "left", "new", "gone")}


@pytest.mark.parametrize("reason", ["consent", "holdout"])
def test_who_is_refused_leaves_for_that_reason_and_enters_again_for_it(engine: DuckDB, reason: str) -> None:
    refused = ada(refused=reason)
    assert told(engine, ada("new"), refused) == {("ada", "left", "new", reason)}
    assert told(engine, refused, ada("new")) == {("ada", "entered", "new", reason)}


def test_who_is_held_out_of_a_segment_leaves_for_the_holdout(engine: DuckDB) -> None:
    assert told(engine, ada("S01", "new"), ada("S01", held_out=["new"])) == {("ada", "left", "new", "holdout")}


def test_an_audience_that_is_too_small_is_left_for_its_size(engine: DuckDB) -> None:
    assert told(engine, ada("new"), ada(held_back=["new"])) == {("ada", "left", "new", "audience_size")}
    assert told(engine, ada(held_back=["new"]), ada("new")) == {("ada", "entered", "new", "audience_size")}


def test_a_segment_that_a_destination_no_longer_gets_is_left_for_the_selection(engine: DuckDB) -> None:
    causes = Causes(NAMES, ["S01", "S02"], deselected={"crm": ["new"]})
    assert told(engine, ada("S01", "new"), ada("S01"), causes) == {("ada", "left", "new", "selection")}
    elsewhere = Causes(NAMES, ["S01", "S02"], deselected={"ads": ["new"]})
    assert told(engine, ada("S01", "new"), ada("S01"), elsewhere) == {("ada", "left", "new", "behaviour")}


def test_whom_the_model_of_before_would_have_left_where_they_were_moved_for_the_model(engine: DuckDB) -> None:
    causes = Causes(NAMES, ["S01", "S02"], ["S01", "S02"], otherwise(engine, ada=["S01"]))
    assert told(engine, ada("S01"), ada("S02"), causes) == {
        ("ada", "left", "S01", "model"),
        ("ada", "entered", "S02", "model"),
    }


def test_whom_the_model_of_before_would_have_moved_as_well_moved_for_behaviour(engine: DuckDB) -> None:
    causes = Causes(NAMES, ["S01", "S02"], ["S01", "S02"], otherwise(engine, ada=["S02"]))
    assert told(engine, ada("S01"), ada("S02"), causes) == {
        ("ada", "left", "S01", "behaviour"),
        ("ada", "entered", "S02", "behaviour"),
    }


def test_who_meets_a_changed_rule_only_as_it_is_now_entered_for_the_rule(engine: DuckDB) -> None:
    causes = Causes(NAMES, ["S01", "S02"], ["new"], otherwise(engine, ada=[]))
    assert told(engine, ada(), ada("new"), causes) == {("ada", "entered", "new", "rule")}


def test_who_meets_a_changed_rule_as_it_was_too_entered_for_behaviour(engine: DuckDB) -> None:
    causes = Causes(NAMES, ["S01", "S02"], ["new"], otherwise(engine, ada=["new"]))
    assert told(engine, ada(), ada("new"), causes) == {("ada", "entered", "new", "behaviour")}


def test_a_rule_that_was_removed_is_left_for_the_rule(engine: DuckDB) -> None:
    causes = Causes(NAMES, ["S01", "S02"], ["buyers"], otherwise(engine, ada=["buyers"]))
    assert told(engine, ada("buyers"), ada(), causes) == {("ada", "left", "buyers", "rule")}


def test_each_destination_has_its_own_changes(engine: DuckDB) -> None:
    before = [*ada("new"), *ada("new", destination="ads")]
    after = [*ada("new"), *ada(destination="ads", refused="consent")]
    changes = compare(audiences(engine, *before), audiences(engine, *after), CAUSES, 2, AS_OF)
    assert [row["destination"] for row in changes.to_pyarrow().to_pylist()] == ["ads"]


def test_nothing_before_and_after_changes_nothing(engine: DuckDB) -> None:
    assert told(engine, [], []) == set()


STATES = st.dictionaries(
    st.tuples(st.sampled_from(["crm", "ads"]), st.sampled_from(["ada", "ben", "o'hara 🐈"])),
    st.fixed_dictionaries(
        {
            "segments": st.lists(st.sampled_from(list(NAMES)), unique=True, max_size=3),
            "held_out": st.lists(st.sampled_from(list(NAMES)), unique=True, max_size=1),
        }
    ),
    max_size=5,
)


@law(5)
@given(states=st.lists(STATES, min_size=1, max_size=4))
def test_replaying_the_feed_gives_the_present_audiences(engine: DuckDB, states: list[dict[Any, Any]]) -> None:
    feed = None
    before = audiences(engine)
    for version, state in enumerate(states, start=1):
        rows = [{"destination": where, "user_id": user} | row for (where, user), row in state.items()]
        after = audiences(engine, *rows)
        changes = compare(before, after, CAUSES, version, AS_OF).to_pyarrow()
        feed = changes if feed is None else pa.concat_tables([feed, changes])
        both = {(c["destination"], c["user_id"], c["segment_id"]) for c in changes.to_pylist()}
        assert len(both) == len(changes)  # nobody enters and leaves, or enters and stays
        assert {c["reason"] for c in changes.to_pylist()} <= REASONS.keys()
        before = after
    expected = {(where, user, segment) for (where, user), row in states[-1].items() for segment in row["segments"]}
    replayed = replay(engine.create_table(ibis.util.gen_name("feed"), feed, temp=True)).to_pyarrow().to_pylist()
    assert {(row["destination"], row["user_id"], row["segment_id"]) for row in replayed} == expected


def test_the_id_stands_for_a_name_that_tells_what_is_personal(engine: DuckDB) -> None:
    names = NAMES | {"S01": "Loyal visitors (region islands)", "S02": "Visitors from the region"}
    causes = Causes(names, discovered=["S01", "S02"])
    changes = compare(audiences(engine), audiences(engine, *ada("S01"), *ada("S02", user_id="ben")), causes, 2, AS_OF)

    def told_by(marks: list[str]) -> set[str]:
        return set(without_names(changes, marks).segment_name.to_pyarrow().to_pylist())

    assert told_by(["(plan ", "(region "]) == {"S01", "Visitors from the region"}
    assert told_by([]) == {names["S01"], names["S02"]}
