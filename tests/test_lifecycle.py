import re
import tomllib
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ibis.backends.duckdb import Backend as DuckDB
from laws import law
from pydantic import ValidationError

from models.conditions import check, holds, parse
from models.lifecycle import STAGES, LifecycleSettings, assign, definitions, transitions

NULL = float("nan")
DEFAULT = LifecycleSettings()


def stage_of(recency_days: float, tenure_days: float = 500, return_absence_days: float = NULL) -> str:
    """Return the stage of one user."""
    user = {"recency_days": recency_days, "tenure_days": tenure_days, "return_absence_days": return_absence_days}
    return str(assign(pd.DataFrame([{"user_id": "u"} | user]), DEFAULT)["u"])


@pytest.mark.parametrize(
    ("user", "stage"),
    [
        ({"recency_days": 0.1, "tenure_days": 0.1}, "new"),
        ({"recency_days": 7, "tenure_days": 7}, "new"),
        ({"recency_days": 7, "tenure_days": 7.001}, "active"),
        ({"recency_days": 14}, "active"),
        ({"recency_days": 14.001}, "cooling"),
        ({"recency_days": 28}, "cooling"),
        ({"recency_days": 28.001}, "at_risk"),
        ({"recency_days": 90}, "at_risk"),
        ({"recency_days": 90.001}, "dormant"),
        ({"recency_days": 2, "return_absence_days": 90}, "active"),
        ({"recency_days": 2, "return_absence_days": 90.001}, "returned"),
        ({"recency_days": 27, "return_absence_days": 200}, "returned"),
    ],
)
def test_the_stage_of_a_user(user: dict[str, float], stage: str) -> None:
    assert stage_of(**user) == stage


days = st.sampled_from([0, 6.9, 7, 14, 14.1, 28, 28.1, 60, 90, 90.1, 400, NULL])
thresholds = st.lists(st.floats(0.5, 400), min_size=2, max_size=2, unique=True).map(sorted)


@law(30)
@given(
    users=st.lists(st.tuples(days, days, days), max_size=20),
    new_days=st.floats(0.5, 100),
    below=thresholds,
    dormant_after=st.floats(1, 100),
)
def test_each_user_is_in_the_first_stage_that_holds_and_in_exactly_one(
    users: list[tuple[float, float, float]], new_days: float, below: list[float], dormant_after: float
) -> None:
    chosen = LifecycleSettings(
        new_days=new_days,
        active_days=below[0],
        cooling_days=below[1],
        dormant_days=max(below[1], 28) + dormant_after,
    )
    frame = pd.DataFrame(users, columns=["recency_days", "tenure_days", "return_absence_days"], dtype="float64")
    frame.insert(0, "user_id", [f"u{number}" for number in range(len(users))])

    stages = assign(frame, chosen)

    assert list(stages.index) == list(frame["user_id"])
    assert set(stages) <= set(STAGES)
    before = pd.Series(False, index=frame.index)
    for name, (_, text) in definitions(chosen).items():
        found = holds(parse(text), frame) if text else ~before
        assert ((stages == name).to_numpy() == (found & ~before).to_numpy()).all()
        before |= found
    assert before.all()


def test_each_stage_is_defined_once_in_words_and_on_features_there_are() -> None:
    defined = definitions(LifecycleSettings(new_days=3.5))

    assert sorted(defined) == sorted(STAGES)
    assert defined["new"] == ("came for the first time in the last 3.5 days", "tenure_days <= 3.5")
    for words, text in defined.values():
        assert words
        if text:
            check(parse(text), dict.fromkeys(["recency_days", "tenure_days", "return_absence_days"], "number"))


def test_the_page_on_named_segments_says_what_the_stages_are() -> None:
    page = (Path(__file__).parents[1] / "docs" / "named-segments.md").read_text()
    rows = [
        f"| `{name}` | {words} | {f'`{text}`' if text else 'everybody else'} |"
        for name, (words, text) in definitions(DEFAULT).items()
    ]
    [given_] = [text for text in re.findall(r"```toml\n(.*?)```", page, re.DOTALL) if "[lifecycle]" in text]

    assert "\n".join(rows) in page
    assert LifecycleSettings.model_validate(tomllib.loads(given_)["lifecycle"]) == DEFAULT


@pytest.mark.parametrize(
    ("given_", "told"),
    [
        ({"active_days": 28}, "must ascend, and are 28, 28 and 90"),
        ({"cooling_days": 5}, "must ascend, and are 14, 5 and 90"),
        ({"dormant_days": 20}, "must ascend, and are 14, 28 and 20"),
        ({"active_days": 7, "cooling_days": 14, "dormant_days": 20}, r"dormant_days \(20\) must be at least 28"),
        ({"new_days": 0}, "greater than or equal to 0.01"),
    ],
)
def test_thresholds_that_make_no_sense_are_refused(given_: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        LifecycleSettings.model_validate(given_)


# --- transitions ---


def test_users_are_counted_by_where_they_were_and_where_they_are(engine: DuckDB) -> None:
    def table(name: str, **stages: str) -> Any:
        rows = {"user_id": [*stages], "lifecycle_stage": [*stages.values()]}
        return engine.create_table(name, pd.DataFrame(rows, columns=[*rows]).astype("str"))

    before = table("before", ada="new", ben="new", cem="active", eva="dormant")
    after = table("after", ada="active", ben="active", cem="active", dan="new")

    assert transitions(before, after).to_pyarrow().to_pylist() == [
        {"before": "active", "after": "active", "users": 1},
        {"before": "dormant", "after": None, "users": 1},
        {"before": "new", "after": "active", "users": 2},
        {"before": None, "after": "new", "users": 1},
    ]
    assert transitions(table("nobody"), table("nobody_else")).to_pyarrow().to_pylist() == []
