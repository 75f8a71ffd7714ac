from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ibis
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ibis.backends.duckdb import Backend as DuckDB
from laws import law

from features import engines
from publish.destination import DestinationSettings
from publish.holdout import held_out_of, hold_out, is_held_out

USERS = pd.Series([f"user-{i}" for i in range(2000)])


@pytest.fixture(scope="module")
def shared_engine() -> Iterator[DuckDB]:
    engine = engines.connect()
    yield engine
    engine.disconnect()


# --- of every destination ---


def held(share: float, salt: str = "shop", users: pd.Series = USERS) -> set[str]:
    return set(users[hold_out(users, share, salt)])


def test_nobody_is_held_out_of_a_share_of_0() -> None:
    assert held(0) == set()


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_about_the_share_is_held_out(share: float) -> None:
    assert len(held(share)) / len(USERS) == pytest.approx(share, abs=0.03)


def test_those_held_out_stay_so_when_the_share_grows() -> None:
    assert held(0.1) < held(0.2)


def test_another_salt_holds_out_others() -> None:
    assert len(held(0.5, "shop") & held(0.5, "other")) / len(USERS) == pytest.approx(0.25, abs=0.05)


def test_who_is_held_out_is_written_down() -> None:
    # If this fails, every experiment that runs loses its control group.
    assert held(0.001) == {"user-400", "user-636", "user-1086", "user-1435"}


@given(users=st.lists(st.text(), min_size=1, max_size=10, unique=True), share=st.floats(0, 0.99))
def test_a_user_is_held_out_whoever_else_is_there(users: list[str], share: float) -> None:
    together = hold_out(pd.Series(users), share, "shop")
    alone = [hold_out(pd.Series([user]), share, "shop")[0] for user in users]
    assert np.array_equal(together, alone)


# --- of a segment at a destination ---


def destinations(**shares: Any) -> dict[str, DestinationSettings]:
    return {name: DestinationSettings(holdout_share=share) for name, share in shares.items()}


def held_of(segment: str, destination: str = "crm", salt: str = "shop", **shares: Any) -> set[str]:
    """Return who of USERS, all in one segment, is held out of it."""
    segments = pd.Series([[segment]] * len(USERS), index=USERS)
    found = held_out_of(segments, destinations(**shares), salt)
    return {str(user) for user, listed in found.items() if f"{destination}/{segment}" in listed}


def test_who_is_held_out_of_a_segment_is_written_down() -> None:
    # If this fails, every experiment that runs loses its control group.
    assert held_of("s1", crm=0.001) == {"user-1510", "user-1901"}


def test_a_user_is_marked_with_each_destination_and_segment_in_order() -> None:
    segments = pd.Series({"ada": ["s2", "s1"], "ben": [], "cat": None})
    nearly_all = 1 - 2**-53
    assert held_out_of(segments, destinations(crm=nearly_all, ads=nearly_all), "shop").to_dict() == {
        "ada": ["ads/s1", "ads/s2", "crm/s1", "crm/s2"],
        "ben": [],
        "cat": [],
    }


def test_a_segments_users_are_held_out_where_a_share_is_given_for_it() -> None:
    by_segment = {"s1": 0.5}
    assert held_of("s1", crm=by_segment) == held_of("s1", crm=0.5)
    assert held_of("s2", crm=by_segment) == set()


def test_nobody_is_held_out_of_a_segment_that_the_destination_never_gets() -> None:
    settings = {"crm": DestinationSettings(holdout_share=0.9, segments=["s2"])}
    segments = pd.Series([["s1"]] * len(USERS), index=USERS)
    assert not any(held_out_of(segments, settings, "shop"))


def test_those_held_out_of_a_segment_stay_so_when_its_share_grows() -> None:
    assert held_of("s1", crm=0.1) < held_of("s1", crm=0.2)


@pytest.mark.parametrize(
    "other",
    [
        lambda: held_of("s2", crm=0.5),
        lambda: held_of("s1", "ads", ads=0.5),
        lambda: held_of("s1", crm=0.5, salt="other"),
        lambda: held(0.5),
    ],
    ids=["segment", "destination", "salt", "everywhere"],
)
def test_who_is_held_out_of_one_is_independent_of_another(other: Any) -> None:
    assert len(held_of("s1", crm=0.5) & other()) / len(USERS) == pytest.approx(0.25, abs=0.05)


def test_other_destinations_and_segments_of_a_user_change_nothing() -> None:
    alone = held_of("s1", crm=0.3)
    segments = pd.Series([["a", "s1", "z"]] * len(USERS), index=USERS)
    together = held_out_of(segments, destinations(crm=0.3, ads=0.6), "shop")
    assert {user for user, listed in together.items() if "crm/s1" in listed} == alone


def test_nobody_means_no_user_of_no_segment() -> None:
    assert held_out_of(pd.Series([], dtype=object), destinations(crm=0.5), "shop").empty


# --- the same in the engine ---

IDS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=6)
SEGMENTS = st.sampled_from(["s1", "s2", "at_risk"])
SHARES = st.floats(0, 1, exclude_max=True)
SETTINGS = st.builds(
    DestinationSettings,
    holdout_share=SHARES | st.dictionaries(SEGMENTS, SHARES),
    segments=st.none() | st.lists(SEGMENTS, unique=True),
)


def held_in(engine: DuckDB, rows: Sequence[tuple[str | None, ...]], settings: Mapping[str, Any], salt: str) -> Any:
    """Return for each user, segment and destination whether the engine holds the user out."""
    columns = dict(zip(("user_id", "segment_id", "destination"), zip(*rows, strict=True), strict=True))
    members = engine.create_table(
        "members", pa.table(columns, pa.schema(dict.fromkeys(columns, pa.string()))), temp=True
    )
    cases = [
        (members.destination == name, is_held_out(members.user_id, members.segment_id, name, one, salt))
        for name, one in settings.items()
    ]
    found = members.mutate(held=ibis.cases(*cases, else_=False)).to_pyarrow().to_pylist()
    engine.drop_table("members")
    return {(row["user_id"], row["segment_id"], row["destination"]): row["held"] for row in found}


@law(25)
@given(
    segments=st.dictionaries(IDS, st.lists(SEGMENTS, unique=True, min_size=1), min_size=1, max_size=8),
    settings=st.fixed_dictionaries({"crm": SETTINGS, "ads": SETTINGS}),
    salt=IDS,
)
def test_the_engine_holds_out_the_same_users(
    shared_engine: DuckDB, segments: dict[str, list[str]], settings: dict[str, DestinationSettings], salt: str
) -> None:
    marked = held_out_of(pd.Series(segments), settings, salt)
    members = [(user, segment, name) for user, listed in segments.items() for segment in listed for name in settings]
    found = held_in(shared_engine, members, settings, salt)
    assert found == {(user, segment, name): f"{name}/{segment}" in marked[user] for user, segment, name in members}


def test_a_null_holds_nobody_out(engine: DuckDB) -> None:
    nearly_all = destinations(crm=1 - 2**-53)
    members = [
        ("ada", "s1", "crm"),
        ("ada", None, "crm"),
        (None, "s1", "crm"),
    ]
    assert list(held_in(engine, members, nearly_all, "shop").values()) == [True, False, False]


@pytest.mark.parametrize("share", [0, {}, {"s1": 0}])
def test_the_engine_holds_nobody_out_of_no_share(engine: DuckDB, share: Any) -> None:
    assert held_in(engine, [("ada", "s1", "crm")], destinations(crm=share), "shop") == {("ada", "s1", "crm"): False}
