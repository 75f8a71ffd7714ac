from dataclasses import replace
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from features.lake import Lake
from models.belonging import STRENGTHS
from publish.assignments import ASSIGNMENTS, Scores, assign, assignments_table, from_arrow, to_arrow
from publish.holdout import hold_out

AS_OF = pd.Timestamp("2024-06-30T05:00:00Z")
BOTH = [{"segment_id": "s1", "strength": 0.7}, {"segment_id": "s2", "strength": 0.3}]
SEGMENTS = pd.DataFrame(
    {
        "user_id": ["ada", "ben"],
        "segment_id": ["s1", "s2"],
        "segment_name": ["Loyal", "Lapsing"],
        "segment_strength": [0.9, 0.6],
        "segment_strengths": pd.Series([BOTH, BOTH[1:]], dtype=pd.ArrowDtype(STRENGTHS)),
        "runner_up_segment_id": ["s2", "s1"],
    }
)
CHURN = Scores(
    pd.DataFrame(
        {"probability": [0.25], "percentile": [50.0], "reasons": [["days since the last session: 20"]]}, ["ada"]
    ),
    version=7,
)


def snapshot(*users: str) -> pd.DataFrame:
    return pd.DataFrame({"user_id": list(users), "as_of": AS_OF, "recency_days": 1.0}).astype({"user_id": "str"})


def assigned(users: pd.DataFrame, **given: Any) -> pd.DataFrame:
    """Assign users by what is given; nothing serves otherwise."""
    nothing: dict[str, Any] = {
        "segments": None,
        "segments_version": None,
        "scores": {},
        "holdout_share": 0,
        "salt": "shop",
    }
    rules = pd.Series({user: [] for user in users["user_id"]}, dtype=object)
    stages = pd.Series(dict.fromkeys(users["user_id"], "active"), dtype="str")
    return assign(users, **(nothing | {"rule_segments": rules, "lifecycle_stages": stages} | given))


def values(frame: pd.DataFrame, user: str) -> dict[str, Any]:
    """Return what a user is assigned, nulls left out."""
    [row] = to_arrow(frame[frame["user_id"] == user]).to_pylist()
    return {name: value for name, value in row.items() if value is not None}


NOTHING = {
    **{"rule_segments": [], "lifecycle_stage": "active"},
    **{"churn_reasons": [], "conversion_reasons": [], "holdout": False, "held_out_of": [], "segment_strengths": []},
}


def test_without_models_a_user_is_assigned_nothing() -> None:
    assert values(assigned(snapshot("ada")), "ada") == {"user_id": "ada", "as_of": AS_OF} | NOTHING


def test_a_user_has_the_segment_of_the_model() -> None:
    found = values(assigned(snapshot("ada", "ben"), segments=SEGMENTS, segments_version=3), "ben")
    assert found == NOTHING | {
        **{"user_id": "ben", "as_of": AS_OF, "segment_id": "s2", "segment_name": "Lapsing"},
        **{"segment_strength": 0.6, "runner_up_segment_id": "s1", "segments_version": 3},
        "segment_strengths": BOTH[1:],
    }


def test_a_user_has_the_grades_of_the_snapshot_and_may_have_none() -> None:
    users = snapshot("ada", "ben").assign(rfm_3=pd.Series(["3-1-2", None], dtype="str"), rfm_5=["5-1-3", "1-1-1"])
    assert values(assigned(users), "ada") == NOTHING | {
        **{"user_id": "ada", "as_of": AS_OF, "rfm_3": "3-1-2", "rfm_5": "5-1-3"},
    }
    assert "rfm_3" not in values(assigned(users), "ben")


def test_a_user_has_the_segments_of_the_rules() -> None:
    rules = pd.Series({"ada": ["at_risk", "researchers"], "ben": []})
    found = assigned(snapshot("ada", "ben"), rule_segments=rules)
    assert values(found, "ada")["rule_segments"] == ["at_risk", "researchers"]
    assert values(found, "ben")["rule_segments"] == []


def test_a_user_has_the_stage_of_their_lifecycle() -> None:
    found = assigned(snapshot("ada", "ben"), lifecycle_stages=pd.Series({"ben": "new", "ada": "dormant"}))
    assert found["lifecycle_stage"].tolist() == ["dormant", "new"]


def test_a_user_without_a_stage_is_refused() -> None:
    with pytest.raises(ValueError, match="lifecycle_stage"):
        to_arrow(assigned(snapshot("ada", "ben"), lifecycle_stages=pd.Series({"ben": "new"})))


def test_a_user_has_the_scores_of_the_models() -> None:
    found = values(assigned(snapshot("ada"), scores={"churn": CHURN}), "ada")
    assert found == NOTHING | {
        **{"user_id": "ada", "as_of": AS_OF, "churn_probability": 0.25, "churn_percentile": 50.0},
        **{"churn_reasons": ["days since the last session: 20"], "churn_version": 7},
    }


def test_a_user_whom_a_model_does_not_apply_to_has_its_version_and_no_score() -> None:
    found = values(assigned(snapshot("ada", "ben"), scores={"churn": CHURN}), "ben")
    assert found == {"user_id": "ben", "as_of": AS_OF, "churn_version": 7} | NOTHING


def test_each_propensity_has_its_own_scores() -> None:
    conversion = Scores(pd.DataFrame({"probability": [0.5], "percentile": [10.0], "reasons": [[]]}, ["ben"]), version=8)
    found = assigned(snapshot("ada", "ben"), scores={"churn": CHURN, "conversion": conversion})
    assert values(found, "ada")["churn_probability"] == 0.25
    assert "conversion_probability" not in values(found, "ada")
    assert values(found, "ben")["conversion_probability"] == 0.5
    assert "churn_probability" not in values(found, "ben")


def test_a_score_of_nobody_is_no_ones() -> None:
    nobody = Scores(pd.DataFrame(columns=["probability", "percentile", "reasons"]), version=7)
    found = values(assigned(snapshot("ada"), scores={"churn": nobody}), "ada")
    assert found == {"user_id": "ada", "as_of": AS_OF, "churn_version": 7} | NOTHING


def test_a_withheld_probability_is_null_and_rank_and_reasons_stay() -> None:
    withheld = replace(CHURN, withheld="ECE .08 is above .03")
    found = values(assigned(snapshot("ada"), scores={"churn": withheld}), "ada")
    assert found == NOTHING | {
        **{"user_id": "ada", "as_of": AS_OF, "churn_percentile": 50.0, "churn_version": 7},
        "churn_reasons": ["days since the last session: 20"],
    }


FURTHER = ["churn", "conversion", "trial"]


def test_a_further_label_has_columns_of_its_own_after_all_others() -> None:
    assert assignments_table(FURTHER).schema.names == (
        *ASSIGNMENTS.schema.names,
        *("trial_probability", "trial_percentile", "trial_reasons", "trial_version"),
    )


def test_without_further_labels_the_contract_is_as_it_was() -> None:
    assert assignments_table(()) == assignments_table(["churn", "conversion"]) == ASSIGNMENTS


def test_a_further_label_has_its_own_scores() -> None:
    found = values(assigned(snapshot("ada", "ben"), scores={"trial": CHURN}, labels=FURTHER), "ada")
    assert (found["trial_probability"], found["trial_percentile"], found["trial_version"]) == (0.25, 50.0, 7)
    assert "churn_version" not in found


def test_a_further_label_without_a_model_is_null(lake: Lake) -> None:
    found = assigned(snapshot("ada"), labels=FURTHER)
    assert values(found, "ada") == {"user_id": "ada", "as_of": AS_OF, "trial_reasons": []} | NOTHING
    lake.write(assignments_table(FURTHER), lake.engine.create_table("assigned", to_arrow(found), temp=True))
    back = from_arrow(lake.read(assignments_table(FURTHER)).to_pyarrow())
    pd.testing.assert_frame_equal(back, found)


def test_users_are_in_order_whatever_the_order_of_what_is_known() -> None:
    straight = assigned(snapshot("ada", "ben"), segments=SEGMENTS, segments_version=3, scores={"churn": CHURN})
    backwards = assigned(snapshot("ben", "ada"), segments=SEGMENTS[::-1], segments_version=3, scores={"churn": CHURN})
    assert straight["user_id"].tolist() == ["ada", "ben"]
    pd.testing.assert_frame_equal(straight, backwards)


def test_a_snapshot_of_nobody_is_assigned_to_nobody() -> None:
    found = assigned(snapshot(), segments=SEGMENTS[:0], segments_version=3, scores={"churn": CHURN})
    assert found.empty
    assert tuple(to_arrow(found).column_names) == ASSIGNMENTS.schema.names


def test_assignments_come_under_their_contract() -> None:
    found = assigned(snapshot("ada", "ben"), segments=SEGMENTS, segments_version=3, scores={"churn": CHURN})
    assert to_arrow(found).schema.equals(ASSIGNMENTS.schema.to_pyarrow())


def test_assignments_come_back_from_the_lake_as_they_were(lake: Lake) -> None:
    rules = pd.Series({"ada": ["at_risk"], "ben": []})
    found = assigned(
        snapshot("ada", "ben"), segments=SEGMENTS, segments_version=3, rule_segments=rules, scores={"churn": CHURN}
    )
    raw = lake.engine.create_table("assigned", to_arrow(found), temp=True)
    lake.write(ASSIGNMENTS, raw)
    back = from_arrow(lake.read(ASSIGNMENTS).order_by("user_id").to_pyarrow())
    lists = pd.Series([list(one) for one in found["segment_strengths"]], dtype=object)
    pd.testing.assert_frame_equal(back, found.assign(segment_strengths=lists))


def test_an_assignment_without_a_user_is_refused() -> None:
    found = assigned(snapshot("ada", "ben"))
    found.loc[1, "user_id"] = None
    with pytest.raises(ValueError, match="user_id"):
        to_arrow(found)


def test_text_for_a_number_is_refused() -> None:
    with pytest.raises(pa.ArrowInvalid):
        to_arrow(assigned(snapshot("ada")).assign(churn_probability="high"))


def test_a_user_is_held_out_of_some_segments_of_some_destinations() -> None:
    found = assigned(snapshot("ada", "ben"), held_out_of=pd.Series({"ben": ["files/s1", "ads/at_risk"]}))
    assert found["held_out_of"].tolist() == [[], ["files/s1", "ads/at_risk"]]
    assert not found["holdout"].any()


USERS = pd.Series([f"user-{i}" for i in range(200)])


def test_assignments_say_who_is_held_out() -> None:
    found = assigned(snapshot(*USERS), holdout_share=0.1)
    assert found["holdout"].any()
    assert list(found["holdout"]) == list(hold_out(found["user_id"], 0.1, "shop"))
