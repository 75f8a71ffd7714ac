"""Degrees of belonging: which segments a user has some of, and that this goes and hides with the segment itself."""

import json
from typing import get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as drawn
from sklearn.mixture import GaussianMixture

from models import clusters
from models.belonging import LEAST_STRENGTH, STRENGTHS, strengths
from models.candidates import Method
from publish.assignments import as_json

IDS = ["S02", "S01", "S03"]


def pairs(distances: list[list[float]], method: Method = "k-means") -> list[list[tuple[str, float]]]:
    found = strengths(np.array(distances, dtype=float), IDS[: len(distances[0])], method)
    return [[(one["segment_id"], one["strength"]) for one in user] for user in found]


def test_of_k_means_strengths_are_shares_of_inverse_squared_distances() -> None:
    # 1 : 1/4 : 1/4
    assert pairs([[1, 2, 2]]) == [[("S02", 0.666), ("S01", 0.166), ("S03", 0.166)]]


def test_at_a_centre_a_user_has_all_of_a_segment() -> None:
    assert pairs([[3, 0, 1]]) == [[("S01", 1.0)]]


def test_two_segments_at_the_same_place_share_who_is_there() -> None:
    assert pairs([[0, 0, 4]]) == [[("S01", 0.5), ("S02", 0.5)]]


def test_what_a_user_has_less_than_a_tenth_of_is_not_listed() -> None:
    assert pairs([[1, 3]]) == [[("S02", 0.9), ("S01", 0.1)]]
    assert pairs([[1, 3.01]]) == [[("S02", 0.9)]]


def test_equal_strengths_are_in_the_order_of_ids() -> None:
    assert pairs([[5, 5, 5]]) == [[("S01", 0.333), ("S02", 0.333), ("S03", 0.333)]]


def test_of_a_mixture_strengths_are_the_probabilities_of_its_own() -> None:
    random = np.random.default_rng(1)
    matrix = random.normal(size=(300, 2)) + random.choice([-1.5, 0, 1.5], size=(300, 1))
    model = GaussianMixture(3, random_state=1).fit(matrix)
    found = strengths(clusters.distances(matrix, model), ["S01", "S02", "S03"], "mixture")
    expected = model.predict_proba(matrix)
    for user, probabilities in zip(found, expected, strict=True):
        told = {int(one["segment_id"][1:]) - 1: one["strength"] for one in user}
        assert all(told[i] == pytest.approx(probabilities[i], abs=0.0011) for i in told)
        assert all(probabilities[i] < LEAST_STRENGTH + 1e-3 for i in {0, 1, 2} - told.keys())


@given(
    distances=drawn.arrays(float, st.tuples(st.integers(1, 4), st.just(3)), elements=st.floats(0, 1e6)),
    method=st.sampled_from(get_args(Method)),
)
def test_strengths_fall_and_sum_to_1_at_most(distances: np.ndarray, method: Method) -> None:
    for user, own in zip(pairs(distances.tolist(), method), distances, strict=True):
        values = [strength for _, strength in user]
        assert values == sorted(values, reverse=True)
        assert sum(values) <= 1
        assert all(LEAST_STRENGTH <= value <= 1 for value in values)
        assert own[IDS.index(user[0][0])] == pytest.approx(own.min(), rel=1e-2)  # they are cut to thousandths


def test_nobody_has_no_strengths() -> None:
    found = strengths(np.empty((0, 3)), IDS, "k-means")
    assert (len(found), found.dtype) == (0, pd.ArrowDtype(STRENGTHS))


def test_as_json_they_read_as_they_were_whatever_the_chunks() -> None:
    users = [
        [{"segment_id": 'S"\\', "strength": 1.0}],
        [],
        [{"segment_id": "S02", "strength": 0.614}, {"segment_id": "S01", "strength": 0.1}],
    ]
    chunks = pa.chunked_array([pa.array(users, STRENGTHS), pa.array(users[1:], STRENGTHS)])
    found = as_json(chunks)
    assert [json.loads(text) for text in found.to_pylist()] == users + users[1:]
    assert as_json(chunks.slice(2)).to_pylist() == found.to_pylist()[2:]
    assert found[2].as_py() == '[{"segment_id":"S02","strength":0.614},{"segment_id":"S01","strength":0.1}]'
    assert len(as_json(chunks.slice(0, 0))) == 0
