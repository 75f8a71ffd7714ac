from functools import cache
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture
from sklearn.pipeline import Pipeline

import models.clusters
from models.clusters import (
    Clusters,
    Incumbent,
    NotEnoughUsers,
    distances,
    find,
    mean_adjusted_rand,
)
from models.spaces import columns_of, shrunk, standardised

GROUPS = {"passers_by": 0.5, "browsers": 0.25, "buyers": 0.12, "spenders": 0.08, "abandoners": 0.05}


def population(count: int = 1_200, noise_count: int = 6, seed: int = 1) -> tuple[pd.DataFrame, NDArray[np.intp]]:
    """Make users of five groups of unequal size, with skewed counts, durations and amounts, and features of noise."""
    random = np.random.default_rng(seed)
    group = random.choice(len(GROUPS), count, p=list(GROUPS.values()))
    level = np.array([[2, 0, 30, 5], [10, 1, 10, 20], [30, 8, 3, 60], [4, 0.1, 60, 200], [15, 15, 20, 10]])[group]
    users = {
        "user_id": [f"u{i:05d}" for i in range(count)],
        "session_count": random.poisson(level[:, 0]).astype("float64"),
        "cart_count": random.poisson(level[:, 1]).astype("float64"),
        "recency_days": level[:, 2] * np.exp(0.5 * random.normal(size=count)),
        "revenue_total": level[:, 3] * np.exp(0.7 * random.normal(size=count)),
    }
    users |= {f"noise_{i}": np.exp(random.normal(size=count)) for i in range(noise_count)}
    return pd.DataFrame(users), group


def noise(count: int = 500, feature_count: int = 6, kind: str = "normal") -> pd.DataFrame:
    random = np.random.default_rng(7)
    shape = count, feature_count
    values = {
        "normal": random.normal(size=shape),
        "uniform": random.random(shape),
        "skewed": random.lognormal(size=shape),
    }
    frame = pd.DataFrame(values[kind], columns=[f"score_{letter}" for letter in "abcdefgh"[:feature_count]])
    frame.insert(0, "user_id", [f"u{i:03d}" for i in range(count)])
    return frame


def pipeline_of(frame: pd.DataFrame) -> Pipeline:
    """Find clusters to see what they are made of, in which refits have no say: two will do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models.clusters, "REFIT_COUNT", 2)
        return find(frame, 3, 3, seed=1).pipeline


def features_of(frame: pd.DataFrame) -> list[str]:
    return columns_of(pipeline_of(frame))


@cache
def planted(seed: int) -> Clusters:
    return find(population(seed=seed)[0], 3, 6, seed=seed)


@cache
def of_noise(kind: str) -> Clusters:
    return find(noise(600, kind=kind), 3, 4, seed=1)


@pytest.fixture
def found() -> Clusters:
    return planted(1)


# --- what clusters are made of ---


def test_a_constant_feature_is_left_out() -> None:
    assert "search_count" not in features_of(population()[0].assign(search_count=3.0))


def test_a_feature_that_applies_to_nobody_is_left_out() -> None:
    assert "revenue_per_purchase" not in features_of(population()[0].assign(revenue_per_purchase=np.nan))


def test_a_category_is_left_out() -> None:
    frame = population()[0]
    frame["device"] = ["mobile", "desktop"] * (len(frame) // 2)

    assert "device" not in features_of(frame)


def test_features_that_go_with_no_other_are_noise_and_left_out(found: Clusters) -> None:
    assert columns_of(found.pipeline) == ["session_count", "cart_count", "recency_days", "revenue_total"]


def test_a_feature_that_goes_with_no_other_but_has_two_heaps_counts() -> None:
    frame = population()[0]
    frame["night_session_share"] = np.random.default_rng(5).choice([0.05, 0.95], len(frame), p=[0.8, 0.2])

    assert "night_session_share" in features_of(frame)


def test_where_all_features_are_noise_all_count() -> None:
    assert columns_of(of_noise("normal").pipeline) == [f"score_{letter}" for letter in "abcdef"]


def test_of_one_quantity_over_several_windows_only_the_longest_counts() -> None:
    names = ("session_count_7d", "session_count_90d", "session_count_28d", "purchase_count_7d", "purchase_count")
    frame = noise().set_axis(["user_id", *names, "session_trend_28d"], axis=1)

    assert sorted(features_of(frame)) == ["purchase_count", "session_count_90d", "session_trend_28d"]


def test_of_two_features_that_say_the_same_only_the_first_counts() -> None:
    frame = noise().assign(score_z=lambda rows: 1 - rows["score_b"])

    assert features_of(frame) == [f"score_{letter}" for letter in "abcdef"]


def test_what_does_not_apply_to_a_user_counts_as_average(found: Clusters) -> None:
    prepared = found.pipeline[:-2].transform(population()[0].assign(session_count=np.nan))

    assert (prepared[:, 0] == 0).all()
    assert (prepared[:, 1] != 0).all()


def test_that_something_does_not_apply_is_a_feature_of_its_own() -> None:
    frame = population()[0]
    frame["basket_size"] = np.where(np.random.default_rng(5).random(len(frame)) < 0.4, np.nan, 20.0 + frame.index % 7)
    prepare = pipeline_of(frame)[:-2]

    with_null, without = (prepare.transform(frame.head(1).assign(basket_size=size))[0, -1] for size in (np.nan, 20.0))
    assert with_null > 0 > without


def test_rates_are_drawn_to_the_average_the_more_the_fewer_sessions_they_are_of() -> None:
    rates_and_counts = [[1.0, 1.0], [1.0, 95.0], [0.0, 5.0], [np.nan, 3.0]]

    found = shrunk(rates_and_counts, averages=np.array([0.4]), places=np.array([0]), prior=5)
    assert found[:, 0] == pytest.approx([0.5, 0.97, 0.2, np.nan], nan_ok=True)


def test_each_rate_is_shrunk_by_what_it_is_a_rate_of() -> None:
    frame, group = population()
    random = np.random.default_rng(5)
    frame["bounce_rate"] = random.binomial(frame["session_count"].astype(int) + 1, 0.3) / (frame["session_count"] + 1)
    frame["cart_abandonment_rate"] = np.where(
        frame["cart_count"] > 0, random.random(len(frame)) < 0.1 + 0.8 * (group == 4), np.nan
    )
    prepare = pipeline_of(frame)[:-2]
    columns = columns_of(prepare)

    few, many = (
        prepare.transform(frame.head(1).assign(cart_abandonment_rate=1.0, cart_count=count, session_count=9.0))[
            0, columns.index("cart_abandonment_rate")
        ]
        for count in (1.0, 100.0)
    )
    assert 0 < few < many


def test_a_null_that_another_feature_tells_is_no_feature() -> None:
    frame = population()[0]
    frame["days_since_cart"] = frame["recency_days"].where(frame["cart_count"] > 0)
    frame["cart_count"] = (frame["cart_count"] > 0).astype("float64")
    pipeline = pipeline_of(frame)

    assert pipeline[:-2].transform(frame).shape[1] == len(columns_of(pipeline))


def test_a_few_extreme_users_are_cut_at_three_deviations(found: Clusters) -> None:
    whale = population()[0].head(1).assign(revenue_total=1e9, session_count=0.0)

    assert found.pipeline[:-2].transform(whale).max() == 3


def test_a_whale_owns_no_cluster() -> None:
    frame, group = population(400)
    frame.loc[0, ["revenue_total", "session_count"]] = 1e9, 1e6
    clusters = find(frame, 4, 5, seed=1)

    assert np.bincount(clusters.of_users).min() > 16
    assert adjusted_rand_score(group, clusters.of_users) > 0.9


# --- how many, and how surely ---


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_planted_groups_are_found(seed: int) -> None:
    clusters, (_, group) = planted(seed), population(seed=seed)

    assert adjusted_rand_score(group, clusters.of_users) >= 0.9
    assert clusters.chosen.stability > 0.9
    assert min(clusters.chosen.jaccard) > 0.9
    assert clusters.doubt is None


@pytest.mark.parametrize(
    "kind", ["normal", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("uniform", "skewed"))]
)
def test_noise_is_no_more_separate_than_one_heap_and_not_stable(kind: str) -> None:
    clusters = of_noise(kind)

    assert max(one.separation for one in clusters.candidates) < 1.25
    assert max(one.stability for one in clusters.candidates) < 0.6
    assert clusters.doubt is not None
    assert "at least 0.6 is needed" in clusters.doubt


def test_a_continuum_has_no_segments_however_stable_its_parts_are() -> None:
    activity = np.random.default_rng(3).normal(size=400)
    frame = pd.DataFrame({"user_id": [f"u{i:03d}" for i in range(400)]})
    for i in range(4):
        frame[f"score_{i}"] = np.exp(activity + 0.5 * np.random.default_rng(i).normal(size=400))
    clusters = find(frame, 3, 4, seed=1)

    assert clusters.chosen.stability > 0.6
    assert clusters.doubt is not None
    assert "times as separate as parts of one heap" in clusters.doubt


def test_fewer_clusters_are_preferred_where_more_are_hardly_better(found: Clusters) -> None:
    best = max(one.score for one in found.candidates if one.refused is None)
    near = [one.k for one in found.candidates if one.refused is None and one.score >= 0.95 * best]

    assert found.chosen.k == min(near)


def test_a_cluster_of_too_few_users_is_not_eligible() -> None:
    clusters = find(population(600)[0], 4, 5, seed=1, share_min=0.065)

    refused = {one.name: one.refused for one in clusters.candidates}
    assert refused["k-means 5 by behaviour"] == "its smallest segment has 5.8 % of users, at least 6.5 % is needed"
    assert clusters.chosen.k == 4


def test_what_serves_is_kept_unless_another_is_clearly_better(found: Clusters) -> None:
    frame, group = population()
    merged = np.where(group == 4, 2, group)  # the smallest group served together with another
    again = find(frame, 5, 5, seed=9, incumbent=Incumbent("k-means", found.of_users))
    better = find(frame, 3, 5, seed=9, incumbent=Incumbent("k-means", np.where(merged == 3, 1, merged)))

    assert again.chosen.kept
    assert (again.of_users == found.of_users).all()
    assert not better.chosen.kept


def test_what_serves_is_no_candidate_with_another_number_of_clusters_than_asked() -> None:
    frame, group = population(400)
    again = find(frame, 3, 3, seed=1, incumbent=Incumbent("k-means", group))

    assert not any(one.kept for one in again.candidates)


@pytest.mark.slow
def test_other_seeds_and_orders_find_the_same_clusters(found: Clusters) -> None:
    frame, _ = population()
    for seed in (11, 12):
        shuffled = frame.sample(frac=1, random_state=seed)
        again = find(shuffled.sort_values("user_id", ignore_index=True), 3, 6, seed=seed)
        assert adjusted_rand_score(again.of_users, found.of_users) > 0.99


@pytest.mark.parametrize(("rows", "k"), [(300, 4), (40, 9), (5, 1), (3, 3)])
def test_agreement_is_the_mean_of_scikit_learns_adjusted_rand_index_of_all_pairs(rows: int, k: int) -> None:
    random = np.random.default_rng(rows)
    labels = random.integers(k, size=rows)
    labellings = [np.where(random.random(rows) < 0.3, random.integers(k, size=rows), labels) for _ in range(6)]
    labellings += [np.arange(rows) % k, np.zeros(rows, dtype=np.intp)]
    pairs = [adjusted_rand_score(one, other) for one, other in combinations(labellings, 2)]

    assert mean_adjusted_rand(labellings) == pytest.approx(np.mean(pairs), abs=1e-12)


def test_too_few_users_are_refused_in_numbers() -> None:
    with pytest.raises(NotEnoughUsers, match="3 segments need at least 30 users, the snapshot has 29"):
        find(noise(29), 3, 6, seed=1)


def test_users_who_do_not_differ_are_refused() -> None:
    with pytest.raises(NotEnoughUsers, match="the 30 of the snapshot do not"):
        find(noise(30).assign(**dict.fromkeys([f"score_{letter}" for letter in "abcdef"], 1.0)), 2, 6, seed=1)


def test_too_few_different_users_are_refused_in_numbers() -> None:
    frame = pd.DataFrame({"user_id": [f"u{i:02d}" for i in range(30)], "session_count": [1.0] * 10 + [9.0] * 20})

    with pytest.raises(NotEnoughUsers, match="3 segments need as many different users, the snapshot has 2"):
        find(frame, 3, 6, seed=1)


def test_there_are_never_more_clusters_than_different_users() -> None:
    frame = pd.DataFrame({"user_id": [f"u{i:02d}" for i in range(60)], "session_count": [1.0, 10.0, 100.0] * 20})

    assert {one.k for one in find(frame, 2, 6, seed=1).candidates} == {2, 3}


# --- distances and profiles ---


@pytest.mark.parametrize("method", ["k-means", "mixture"])
def test_a_users_distances_depend_on_no_other_user(found: Clusters, method: str) -> None:
    frame, _ = population()
    prepare, model = found.pipeline[:-1], found.pipeline[-1]
    if method == "mixture":
        model = GaussianMixture(4, random_state=0).fit(prepare.transform(frame))

    together = distances(prepare.transform(frame), model)
    apart = np.vstack([distances(prepare.transform(frame.iloc[[i]]), model) for i in range(0, 1_200, 100)])
    assert together[::100].tobytes() == apart.tobytes()


def test_a_mixtures_distances_are_the_inverse_of_its_probabilities(found: Clusters) -> None:
    coordinates = found.pipeline[:-1].transform(population()[0])
    mixture = GaussianMixture(4, random_state=0).fit(coordinates)

    assert 1 / distances(coordinates, mixture) == pytest.approx(mixture.predict_proba(coordinates), abs=1e-9)


def test_standardised_features_are_in_deviations_from_the_average_user(found: Clusters) -> None:
    features = standardised(found.pipeline, population()[0])

    assert features.mean().to_numpy() == pytest.approx(0, abs=0.05)
    assert list(features.columns) == ["session_count", "cart_count", "recency_days", "revenue_total"]
