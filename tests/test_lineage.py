from dataclasses import astuple, replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from laws import law

from models.lineage import Event, Lineage, change_sizes, explain, match, overlap
from models.segments import SegmentModel, align, assign, fit

PLACES = {"A": (0.1, 0.1), "a": (0.3, 0.1), "B": (0.9, 0.1), "C": (0.1, 0.9), "D": (0.9, 0.9), "E": (0.5, 0.5)}
"""Where groups of users are; a is close to A, so that together they are one segment where there is none to spare."""
EARLIER, LATER = "2024-06-01T00:00:00+00:00", "2024-06-08T00:00:00+00:00"


def users(week: int = 1, **sizes: int) -> pd.DataFrame:
    """Make groups of users around their places; of each, a third are there in every week."""
    rows = []
    for group, size in sizes.items():
        shares = PLACES[group] + np.random.default_rng([week, ord(group)]).uniform(-0.05, 0.05, (size, 2))
        names = [f"{group}{i}" if i < size / 3 else f"{group}{i} of week {week}" for i in range(size)]
        rows.append(pd.DataFrame({"user_id": names, "night_session_share": shares[:, 0], "bounce_rate": shares[:, 1]}))
    return pd.concat(rows, ignore_index=True)


BEFORE = users(A=40, B=30, C=20, D=15)


def find(snapshot: pd.DataFrame, k: int, seed: int = 1) -> SegmentModel:
    """Fit, to the same rows only once."""
    return found_in(tuple(snapshot.itertuples(index=False, name=None)), tuple(snapshot), k, seed)


@cache
def found_in(rows: tuple[tuple[Any, ...], ...], columns: tuple[str, ...], k: int, seed: int) -> SegmentModel:
    return fit(pd.DataFrame(rows, columns=list(columns)), k, k, seed)


def begin(snapshot: pd.DataFrame, k: int) -> SegmentModel:
    return align(find(snapshot, k), None, None, snapshot, 1, EARLIER, {})


def train(old: SegmentModel, before: pd.DataFrame | None, now: pd.DataFrame, k: int, seed: int = 1) -> SegmentModel:
    return align(find(now, k, seed), old, before, now, old.next_number, LATER, {})


@cache
def old() -> SegmentModel:
    return begin(BEFORE, 4)


def groups(model: SegmentModel, snapshot: pd.DataFrame) -> dict[str, str]:
    """Return the groups in each segment, by id."""
    assigned = assign(model, snapshot)
    letters = assigned["user_id"].str[0].groupby(assigned["segment_id"]).unique()
    return {str(segment_id): "".join(sorted(found)) for segment_id, found in letters.items()}


def events(model: SegmentModel) -> list[str]:
    """Say what became of the segments that were not just kept."""
    assert model.lineage is not None
    return [f"{event.segment_id} {event}" for event in model.lineage.events if event.kind != "kept"]


# --- planted ---


def test_at_the_first_training_every_segment_is_born() -> None:
    model = old()

    assert groups(model, BEFORE) == {"S01": "A", "S02": "B", "S03": "C", "S04": "D"}
    assert events(model) == ["S01 born", "S02 born", "S03 born", "S04 born"]
    assert model.lineage is not None
    assert model.lineage.size_changes == ()
    assert model.lineage.since == dict.fromkeys(["S01", "S02", "S03", "S04"], EARLIER)


@pytest.mark.parametrize("seed", range(3))
def test_of_the_same_population_every_segment_is_kept(seed: int) -> None:
    model = train(old(), BEFORE, BEFORE.sample(frac=1, random_state=seed), 4, seed)

    assert events(model) == []
    assert groups(model, BEFORE) == groups(old(), BEFORE)
    assert model.next_number == 5


def test_of_other_users_who_behave_alike_every_segment_is_kept() -> None:
    now = users(2, A=30, B=45, C=20, D=15)
    model = train(old(), BEFORE, now, 4)

    assert events(model) == []
    assert groups(model, now) == {"S01": "A", "S02": "B", "S03": "C", "S04": "D"}


def test_a_segment_that_grows_or_shrinks_tenfold_is_kept() -> None:
    grown = users(2, A=40, B=30, C=20, D=150)

    assert events(train(old(), BEFORE, grown, 4)) == []
    assert events(train(begin(grown, 4), grown, BEFORE, 4)) == []


TWO_IN_ONE = {"A": 40, "a": 25, "B": 30, "C": 20, "D": 15}


@pytest.mark.parametrize("now", [users(**TWO_IN_ONE), users(2, **TWO_IN_ONE), users(2, A=25, a=45, B=30, C=20, D=15)])
def test_a_planted_split_is_reported_as_split_and_the_larger_part_of_the_users_before_keeps_the_id(
    now: pd.DataFrame,
) -> None:
    before = users(**TWO_IN_ONE)
    model = train(begin(before, 4), before, now, 5)

    assert groups(model, before) == {"S01": "A", "S02": "B", "S03": "C", "S04": "D", "S05": "a"}
    assert events(model) == ["S01 split into S01, S05", "S05 split from S01"]


def test_a_small_part_that_splits_off_is_reported_as_split() -> None:
    sizes = {"A": 80, "a": 10, "B": 30, "C": 20, "D": 15}
    before = users(**sizes)

    assert events(train(begin(before, 4), before, users(2, **sizes), 5)) == [
        "S01 split into S01, S05",
        "S05 split from S01",
    ]


@pytest.mark.parametrize("now", [users(**TWO_IN_ONE), users(2, **TWO_IN_ONE)])
def test_a_planted_merger_is_reported_as_merged(now: pd.DataFrame) -> None:
    before = users(**TWO_IN_ONE)
    model = train(begin(before, 5), before, now, 4)

    assert groups(model, before) == {"S01": "Aa", "S02": "B", "S04": "C", "S05": "D"}
    assert events(model) == ["S01 merged from S01, S03", "S03 merged into S01"]
    assert model.next_number == 6


@pytest.mark.parametrize("size", [12, 300])
@pytest.mark.parametrize("place", ["a", "E"])
def test_a_new_group_is_born_however_large_and_close(place: str, size: int) -> None:
    now = users(2, A=40, B=30, C=20, D=15, **{place: size})
    model = train(old(), BEFORE, now, 5)

    assert events(model) == ["S05 born"]
    assert groups(model, now)["S05"] == place
    assert model.lineage is not None
    assert model.lineage.since == dict.fromkeys(["S01", "S02", "S03", "S04"], EARLIER) | {"S05": LATER}


@pytest.mark.parametrize("size", [12, 300])
@pytest.mark.parametrize("place", ["a", "E"])
def test_a_group_that_vanishes_is_retired_however_large_and_close(place: str, size: int) -> None:
    before = users(2, A=40, B=30, C=20, D=15, **{place: size})
    five = begin(before, 5)
    [gone] = [segment_id for segment_id, found in groups(five, before).items() if found == place]
    model = train(five, before, BEFORE, 4)

    assert events(model) == [f"{gone} retired"]
    assert groups(model, BEFORE) == {one: found for one, found in groups(five, before).items() if one != gone}


def test_several_things_happen_at_once() -> None:
    before = users(A=60, a=25, B=50, E=35, C=20)
    now = users(2, A=60, a=25, B=50, D=40, C=20)
    model = train(begin(before, 4), before, now, 5)

    assert groups(begin(before, 4), before) == {"S01": "Aa", "S02": "B", "S03": "E", "S04": "C"}
    assert groups(model, now) == {"S01": "A", "S02": "B", "S04": "C", "S05": "D", "S06": "a"}
    assert events(model) == ["S01 split into S01, S06", "S03 retired", "S05 born", "S06 split from S01"]


def test_without_the_snapshot_of_before_kept_split_and_merged_are_told_and_a_new_group_counts_as_split() -> None:
    before = users(**TWO_IN_ONE)
    four, five = begin(before, 4), begin(before, 5)

    assert events(train(four, None, users(2, **TWO_IN_ONE), 4)) == []
    assert events(train(four, None, users(2, **TWO_IN_ONE), 5)) == ["S01 split into S01, S05", "S05 split from S01"]
    assert events(train(five, None, users(2, **TWO_IN_ONE), 4)) == ["S01 merged from S01, S03", "S03 merged into S01"]
    assert events(train(five, None, users(2, A=40, B=30, C=20, D=15), 4)) == ["S03 retired"]
    assert events(train(old(), None, users(2, A=40, B=30, C=20, D=15, a=12), 5))[-1] == "S05 split from S01"


def test_ids_that_a_version_had_which_never_served_are_passed_over() -> None:
    before = users(**TWO_IN_ONE)
    model = align(find(before, 5), begin(before, 4), before, before, 9, LATER, {})

    assert sorted(model.ids) == ["S01", "S02", "S03", "S04", "S09"]
    assert model.next_number == 10


def test_a_first_model_beside_versions_that_there_are_has_ids_of_its_own() -> None:
    model = align(find(BEFORE, 4), None, None, BEFORE, 7, LATER, {})

    assert groups(model, BEFORE) == {"S07": "A", "S08": "B", "S09": "C", "S10": "D"}


def test_a_name_that_a_person_gave_stays_with_the_id() -> None:
    model = align(find(BEFORE, 4), old(), BEFORE, BEFORE, 5, LATER, {"S02": "Nightly regulars"})

    assert {one.segment_id: one.name for one in model.segments}["S02"] == "Nightly regulars"
    assert model.lineage is not None
    assert [event.name for event in model.lineage.events if event.segment_id == "S02"] == ["Nightly regulars"]


def test_the_instants_of_a_model_that_did_not_know_them_stay_unknown() -> None:
    model = train(replace(old(), lineage=None), BEFORE, users(2, A=40, B=30, C=20, D=15, E=25), 5)

    assert model.lineage is not None
    assert model.lineage.since == {"S05": LATER}


def test_a_lineage_is_counted_and_survives_json() -> None:
    before = users(**TWO_IN_ONE)
    lineage = train(begin(before, 4), before, before, 5).lineage

    assert lineage is not None
    assert lineage.count() == {"kept": 3, "split": 2, "merged": 0, "born": 0, "retired": 0}
    assert Lineage.from_dict(lineage.to_dict()) == lineage
    assert lineage.overlap_now["S05"] == {"S01": 25, "S02": 0, "S03": 0, "S04": 0}


# --- match ---


def table(rows: list[list[int]]) -> pd.DataFrame:
    """Make counts of new segments n0, n1, ... by old ones S1, S2, ..."""
    return pd.DataFrame(rows, [f"n{i}" for i in range(len(rows))], [f"S{i + 1}" for i in range(len(rows[0]))])


def test_users_are_counted_by_both_models() -> None:
    found = overlap(pd.Series(["n1", "n0", "n1"]), pd.Series(["S1", "S1", "S1"]), ["n0", "n1"], ["S1", "S2"])

    assert found.to_dict("index") == {"n0": {"S1": 1, "S2": 0}, "n1": {"S1": 2, "S2": 0}}


def test_segments_agree_that_have_most_of_their_users_in_common() -> None:
    counts = table([[0, 10], [10, 0]])

    assert match(counts, counts) == {"n0": "S2", "n1": "S1"}


def test_all_pairs_together_agree_most() -> None:
    # Of n0 more users were in S2; but n1 is S2 for sure, and then S1 is left for n0.
    counts = table([[20, 25], [0, 60]])

    assert match(counts, counts) == {"n0": "S1", "n1": "S2"}


def test_a_pair_holds_half_of_one_of_the_two() -> None:
    assert match(table([[5, 5]]), table([[5, 5]])) == {"n0": "S1"}
    scattered = table([[4, 4, 4], [6, 6, 6], [6, 6, 6]])
    assert match(scattered, scattered) == {}


def test_stragglers_make_no_pair() -> None:
    # All of n0 was in S1, but S1 is ten times as large, and went elsewhere.
    assert match(table([[10, 0], [45, 60], [45, 60]]), table([[10, 0], [0, 60], [0, 60]])) == {"n1": "S2"}


def test_who_comes_to_an_empty_place_does_not_take_the_id_of_those_next_to_it() -> None:
    # n1 is new: before, nobody was there; now the old model counts its many users to S1.
    assert match(before=table([[20], [0]]), now=table([[20], [500]])) == {"n0": "S1"}


def test_who_has_left_does_not_leave_the_id_to_those_next_to_it() -> None:
    # S2 is empty now; before, the new model counts its many users to n0.
    assert match(before=table([[20, 500]]), now=table([[20, 0]])) == {"n0": "S1"}


# --- explain ---


def told(before: pd.DataFrame | None, now: pd.DataFrame, **sizes_before: int) -> dict[str, str]:
    sizes = pd.Series(sizes_before) if before is None else before.sum(axis=0)
    names = dict.fromkeys([*now.index, *now.columns], "")
    return {event.segment_id: str(event) for event in explain(before, now, sizes, names)}


def counts(**rows: dict[str, int]) -> pd.DataFrame:
    """Make counts of new segments by old ones, of those that are not 0."""
    return pd.DataFrame.from_dict(rows, orient="index").fillna(0).astype("int64")


def test_a_new_segment_of_several_is_split_from_each_that_gave_a_quarter() -> None:
    found = counts(S1={"S1": 40}, S2={"S2": 40}, S3={"S3": 40, "S1": 0}, S4={"S1": 10, "S2": 7, "S3": 3})

    assert told(found, found)["S4"] == "split from S1, S2"
    assert told(found, found)["S3"] == "kept"


def test_an_old_segment_whose_users_scatter_is_retired() -> None:
    found = counts(S1={"S1": 60, "S9": 10}, S2={"S2": 60, "S9": 10}, S3={"S3": 60, "S9": 10})

    assert told(found, found) == {"S1": "kept", "S2": "kept", "S3": "kept", "S9": "retired"}


def test_a_segment_that_merges_and_splits_has_merged() -> None:
    found = counts(S1={"S1": 60, "S9": 10}, S2={"S1": 20})

    assert told(found, found) == {"S1": "merged from S1, S9", "S2": "split from S1", "S9": "merged into S1"}


def test_where_users_went_to_something_new_it_is_born_and_what_they_left_is_retired() -> None:
    before, now = counts(S1={"S1": 60, "S9": 30}, S2={"S9": 1}), counts(S1={"S1": 60}, S2={"S9": 30})

    assert told(before, now) == {"S1": "kept", "S2": "born", "S9": "retired"}


def test_without_a_snapshot_of_before_the_sizes_of_then_tell_who_is_gone() -> None:
    now = counts(S1={"S1": 60, "S9": 2})

    assert told(None, now, S1=60, S9=30)["S9"] == "retired"
    assert told(None, now, S1=60, S9=3)["S9"] == "merged into S1"


def test_an_event_says_from_which_ids_and_to_which() -> None:
    found = counts(S1={"S1": 60, "S9": 10}, S2={"S1": 20})

    assert explain(found, found, found.sum(axis=0), {"S1": "Regulars", "S2": "Newcomers", "S9": "Sceptics"}) == (
        Event("S1", "Regulars", "merged", ("S1", "S9"), ("S1", "S2")),
        Event("S2", "Newcomers", "split", ("S1",), ("S2",)),
        Event("S9", "Sceptics", "merged", ("S9",), ("S1",)),
    )


SQUARES = arrays(np.int64, (3, 4), elements=st.integers(0, 50))


@law(20)
@given(before=SQUARES, now=SQUARES)
def test_of_any_counts_each_id_has_one_event_and_no_id_appears_from_nowhere(
    before: np.ndarray[tuple[int, int], np.dtype[np.int64]], now: np.ndarray[tuple[int, int], np.dtype[np.int64]]
) -> None:
    old_ids = ["S1", "S2", "S3", "S4"]
    then, today = (pd.DataFrame(one, ["n1", "n2", "n3"], old_ids) for one in (before, now))
    pairs = match(then, today)
    new_ids = [pairs.get(new, new) for new in then.index]
    then.index = today.index = pd.Index(new_ids)
    found = explain(then, today, then.sum(axis=0), dict.fromkeys([*new_ids, *old_ids], ""))

    assert [event.segment_id for event in found] == sorted({*new_ids, *old_ids})
    for event in found:
        assert (event.segment_id in event.from_ids) == (event.segment_id in old_ids)
        assert (event.segment_id in event.to_ids) == (event.segment_id in new_ids)
        assert set(event.from_ids) <= set(old_ids)
        assert set(event.to_ids) <= set(new_ids)


# --- change_sizes ---


def test_a_change_of_size_is_behaviour_and_model() -> None:
    now = counts(S1={"S1": 50, "S9": 5}, S2={"S1": 20, "S9": 0})
    first, second, gone = change_sizes(now, pd.Series({"S1": 60, "S9": 40}), {"S1": "a", "S2": "b", "S9": "c"})

    assert astuple(first) == (
        "S1",
        "a",
        60,
        10,
        -15,
        55,
        0.6,
        pytest.approx(70 / 75 - 0.6),
        pytest.approx(-0.2),
        55 / 75,
    )
    assert (second.before, second.behaviour, second.model, second.now) == (0, 0, 20, 20)
    assert (gone.before, gone.behaviour, gone.model, gone.now) == (40, -35, -5, 0)


@law(20)
@given(now=SQUARES, before=arrays(np.int64, 4, elements=st.integers(0, 2**40)))
def test_the_parts_add_up(
    now: np.ndarray[tuple[int, int], np.dtype[np.int64]], before: np.ndarray[tuple[int], np.dtype[np.int64]]
) -> None:
    ids = ["S1", "S2", "S3", "S4"]
    frame = pd.DataFrame(now, ["S2", "S5", "S4"], ids)
    changes = change_sizes(frame, pd.Series(before, ids), dict.fromkeys([*ids, "S5"], ""))

    for change in changes:
        assert change.before + change.behaviour + change.model == change.now
        assert change.before_share + change.behaviour_share + change.model_share == pytest.approx(change.now_share)
    assert sum(change.before for change in changes) == before.sum()
    assert sum(change.behaviour for change in changes) == now.sum() - before.sum()
    assert sum(change.model for change in changes) == 0


def test_who_is_in_the_segment_of_the_same_id_by_both_models_keeps_it() -> None:
    overlap = {"S01": {"S01": 60, "S02": 10}, "S03": {"S01": 5, "S02": 25}}

    assert Lineage((), (), {}, overlap).kept_share == 0.6
