from dataclasses import replace

import pytest

from models.candidates import Candidate, choose, judge

GOOD = Candidate("k-means", 4, False, 0.4, 2.0, 0.9, (0.9, 0.9, 0.9, 0.9), 0.1)
TELLING = replace(GOOD, space="outlook", separation=1.2, steadiness=0.9, telling=0.3, telling_low=0.25)


def chosen(*candidates: Candidate) -> Candidate:
    return choose(judge(candidates, share_min=0.02, stability_min=0.6))


def reason(candidate: Candidate, *others: Candidate) -> str | None:
    return judge([candidate, *others], share_min=0.02, stability_min=0.6)[0].refused


def test_the_score_is_separation_times_stability_where_nothing_else_is_known() -> None:
    assert GOOD.score == pytest.approx(1.8)


def test_steadiness_and_what_is_surely_told_count_as_factors() -> None:
    assert TELLING.score == pytest.approx(1.2 * 0.9 * 0.9 * (0.05 + 0.25))


def test_what_is_not_surely_told_counts_as_nothing() -> None:
    assert replace(GOOD, telling=0.1, telling_low=-0.02).score == pytest.approx(1.8 * 0.05)


def test_to_send_half_of_the_users_elsewhere_costs_a_quarter_of_the_score() -> None:
    assert replace(GOOD, kept_share=0.5).score == pytest.approx(0.75 * GOOD.score)


def test_broad_clusters_count_half() -> None:
    assert replace(GOOD, broad=True).score == pytest.approx(GOOD.score / 2)


def test_clusters_that_are_made_to_tell_and_do_not_are_refused() -> None:
    assert reason(replace(TELLING, telling_low=0.0)) == (
        "it was made to tell what users do next, and does not surely tell anything of it"
    )


def test_clusters_that_tell_need_not_be_separate() -> None:
    assert reason(TELLING) is None
    assert reason(replace(TELLING, space="behaviour")) is None
    assert "times as separate as parts of one heap" in str(reason(replace(GOOD, separation=1.2)))


def test_clusters_that_tell_less_than_four_fifths_of_what_others_tell_are_refused() -> None:
    enough, less = (replace(TELLING, telling=value) for value in (0.24, 0.23))

    assert reason(enough, TELLING) is None
    assert reason(less, TELLING) == "it tells 0.23 of what users do next, another 0.30"


def test_clusters_by_behaviour_have_to_tell_nine_tenths_of_what_others_tell() -> None:
    enough, less = (replace(TELLING, space="behaviour", telling=value) for value in (0.27, 0.26))

    assert reason(enough, TELLING) is None
    assert reason(less, TELLING) == "it tells 0.26 of what users do next, another 0.30"


def test_what_an_unstable_candidate_tells_refuses_no_other() -> None:
    assert reason(replace(TELLING, telling=0.1), replace(TELLING, telling=0.9, stability=0.5)) is None


def test_where_nothing_is_told_nothing_is_refused_for_it() -> None:
    assert reason(replace(GOOD, telling=-0.1, telling_low=-0.2), replace(GOOD, telling=0.01, telling_low=-0.1)) is None


def test_more_clusters_are_taken_where_they_tell_more() -> None:
    more = replace(TELLING, k=6, telling=0.36, telling_low=0.31)

    assert chosen(TELLING, more).k == 6


def test_fewer_clusters_are_taken_where_more_tell_hardly_more() -> None:
    more = replace(TELLING, k=6, telling=0.31, telling_low=0.26)

    assert chosen(TELLING, more).k == 4


def test_what_serves_is_kept_where_another_is_hardly_better() -> None:
    serving = replace(GOOD, k=6, kept=True, kept_share=1.0)

    assert chosen(replace(GOOD, kept_share=0.9), serving).kept


def test_what_moves_half_of_the_users_has_to_be_a_third_better() -> None:
    serving = replace(GOOD, kept=True, kept_share=1.0)

    assert chosen(replace(GOOD, k=5, separation=2.6, kept_share=0.5), serving).kept
    assert not chosen(replace(GOOD, k=5, separation=2.9, kept_share=0.5), serving).kept


def test_where_none_is_eligible_the_best_by_behaviour_is_recorded() -> None:
    found = chosen(replace(GOOD, stability=0.5), replace(TELLING, stability=0.5, separation=9.0))

    assert found.space == "behaviour"
    assert found.refused is not None


def test_a_candidate_of_before_there_were_spaces_is_of_behaviour() -> None:
    told = {"method": "k-means", "k": 3, "kept": False, "silhouette": 0.4, "separation": 2.0, "stability": 0.9}

    assert Candidate.from_dict(told | {"jaccard": [0.9], "smallest_share": 0.1}).space == "behaviour"


def test_a_candidate_says_how_it_was_judged_as_far_as_that_is_known() -> None:
    assert GOOD.judgement() == "k-means 4 by behaviour; stability of refits 0.90, separation 2.00"
    assert replace(TELLING, kept_share=0.84).judgement() == (
        "k-means 4 by outlook; stability of refits 0.90, steadiness from an earlier snapshot 0.90, separation 1.20, "
        "telling 0.30, share of users who keep their segment 0.84"
    )
