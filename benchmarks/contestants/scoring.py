"""Scores of users by two models of 300 trees: probabilities, and the reasons for them, from a snapshot's file.

And the training of one model on weekly snapshots, with all that is measured before it may serve, and of segments.
"""

from pathlib import Path

import joblib
import lightgbm as lgb
import numpy as np
import pandas as pd
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OrdinalEncoder

from features.snapshots import feature_names
from models import segments
from models.clusters import LEARNT_MAX
from models.promotion import compete
from models.propensities import RFM, Blend, Budget, fit_line, predict
from models.reasons import reasons
from models.telling import Past

WINDOWS_DAYS = (1, 7, 14, 28, 56, 90, 180, 365)
NUMERIC = list(feature_names(WINDOWS_DAYS))
CATEGORIES = {"device": 3, "source": 12, "country": 40, "plan": 3, "age_band": 6, "gender": 3, "channel": 5}
NULLABLE = ("recency_days", "abandonment_rate", "per_purchase", "trend_28d", "abandoned_recency_days")
LABELS = ("churned", "converted")
TRAINING_USERS = 100_000
SAMPLE = 20_000
SEGMENTED = 30
WEEKS = 12
BUDGET = Budget()


def prepare(folder: Path, users: int) -> None:
    """Store a snapshot of users, a sample of them, and the models: trees of 15 leaves, 4 levels at most, and a line."""
    snapshot = _snapshot(users, seed=1)
    snapshot.to_parquet(folder / "snapshot.parquet")
    snapshot.head(SAMPLE).to_parquet(folder / "sample.parquet")
    train, later = (_snapshot(min(users, TRAINING_USERS), seed) for seed in (2, 3))
    for seed, label in enumerate(LABELS):
        pipeline = _pipeline().fit(
            train,
            _label(train, seed),
            trees__categorical_feature=list(range(len(NUMERIC), len(NUMERIC) + len(CATEGORIES))),
        )
        line = fit_line(train.assign(label=_label(train, seed)), list(RFM), "label")
        blend = Blend(pipeline, line, share=0.5)
        model = CalibratedClassifierCV(FrozenEstimator(blend), method="sigmoid").fit(later, _label(later, seed))
        joblib.dump(model, folder / f"{label}.joblib")


def probabilities(folder: Path) -> None:
    """Predict both probabilities of every user."""
    snapshot = pd.read_parquet(folder / "snapshot.parquet")
    for model in _models(folder):
        predict(model, snapshot)


def reasons_of_all(folder: Path) -> None:
    """Give the reasons for both scores of every user."""
    snapshot = pd.read_parquet(folder / "snapshot.parquet")
    said = [reasons(model.estimator.estimator, snapshot) for model in _models(folder)]
    assert [len(of_model) for of_model in said] == [len(snapshot)] * len(LABELS)


def contributions_by_lightgbm(folder: Path) -> None:
    """Let LightGBM make the contributions to both scores of the sample."""
    sample = pd.read_parquet(folder / "sample.parquet")
    for model in _models(folder):
        columns, trees = model.estimator.estimator.trees
        trees.predict(columns.transform(sample), pred_contrib=True, num_threads=0)


def prepare_training(folder: Path, users: int) -> None:
    """Store weekly snapshots of the same users, labelled."""
    for week in range(WEEKS):
        snapshot = _snapshot(users, seed=10 + week)
        as_of = pd.Timestamp("2026-01-01", tz="UTC") + pd.Timedelta(weeks=week)
        user_ids = pd.Series([f"u{i}" for i in range(users)], dtype="str")
        labelled = snapshot.assign(user_id=user_ids, as_of=as_of, churned=_label(snapshot, 0))
        labelled.to_parquet(folder / f"week_{week:02}.parquet")


def train(folder: Path) -> None:
    """Learn from all weeks but two, validate on the next and compete on the last, by segment."""
    weeks = [pd.read_parquet(file) for file in sorted(folder.glob("week_*.parquet"))]
    compete(
        pd.concat(weeks[:-2], ignore_index=True),
        weeks[-2],
        weeks[-1],
        "churned",
        segments=weeks[-1]["channel"],
        budget=BUDGET,
    )


def prepare_segments(folder: Path, users: int) -> None:
    """Store a snapshot of 30 numeric features, three of the past with outcomes, and the segments of some users."""
    snapshot = _segmented(users, seed=1)
    snapshot.to_parquet(folder / "snapshot.parquet")
    past = [_past(min(users, LEARNT_MAX), seed) for seed in (2, 3, 4)]
    joblib.dump(past, folder / "past.joblib")
    joblib.dump(segments.fit(snapshot.head(users // 10), 3, 8, seed=0), folder / "segments.joblib")


def find_segments(folder: Path) -> None:
    """Choose among segments, fit, judge and describe them, and see what they would have told."""
    snapshot, past = pd.read_parquet(folder / "snapshot.parquet"), joblib.load(folder / "past.joblib")
    segments.fit(snapshot, 3, 8, seed=0, past=past)


def _segmented(users: int, seed: int) -> pd.DataFrame:
    snapshot = _snapshot(users, seed)[[*NUMERIC[: SEGMENTED - 1], "active_day_count"]]
    snapshot.insert(0, "user_id", pd.Series([f"u{i:07d}" for i in range(users)], dtype="str"))
    return snapshot


def _past(users: int, seed: int) -> Past:
    """Return a snapshot whose users come again the likelier, and spend the more, the more sessions they had."""
    random = np.random.default_rng(seed)
    as_of = pd.Timestamp("2026-01-01", tz="UTC") + pd.Timedelta(days=28 * seed)
    snapshot = _segmented(users, seed).assign(as_of=as_of)
    comes = random.random(users) < snapshot["session_count"].rank(pct=True)
    revenue = np.where(comes, np.exp(random.normal(3, 1, users)), 0.0)
    outcomes = snapshot[["user_id", "as_of"]].assign(label_churn=~comes, revenue=revenue, event_count=comes * 3.0)
    return Past(snapshot, outcomes, dict.fromkeys(("label_churn", "revenue", "event_count"), 28.0))


def assign_segments(folder: Path) -> None:
    """Assign every user to a segment."""
    segments.assign(joblib.load(folder / "segments.joblib"), pd.read_parquet(folder / "snapshot.parquet"))


def _models(folder: Path) -> list[CalibratedClassifierCV]:
    return [joblib.load(folder / f"{label}.joblib") for label in LABELS]


def _pipeline() -> Pipeline:
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan, encoded_missing_value=np.nan)
    columns = ColumnTransformer([("numeric", "passthrough", NUMERIC), ("categories", encoder, list(CATEGORIES))])
    trees = lgb.LGBMClassifier(
        n_estimators=300, num_leaves=15, max_depth=4, learning_rate=0.05, colsample_bytree=0.8, verbose=-1
    )
    return Pipeline([("columns", columns), ("trees", trees)])


def _snapshot(users: int, seed: int) -> pd.DataFrame:
    """Draw users whose features go with how active, how thorough and how ready to buy they are."""
    random = np.random.default_rng(seed)
    traits = random.normal(size=(users, 3))
    columns: dict[str, object] = {}
    for i, name in enumerate(NUMERIC):
        level = traits[:, i % 3] + random.normal(size=users)
        if name.endswith(("_rate", "_share")):
            values = np.round(1 / (1 + np.exp(-level)), 2)
        elif name.endswith("_days"):
            values = 30 * np.exp(-level)
        elif "_count" in name:
            values = np.floor(3 * np.exp(level))
        else:
            values = np.tanh(level) if "trend" in name else 20 * np.exp(level)
        nulls = random.random(users) < (0.3 if name.endswith(NULLABLE) and name != "recency_days" else 0)
        columns[name] = np.where(nulls, np.nan, values)
    for name, count in CATEGORIES.items():
        chosen = np.minimum(random.geometric(0.3, users) - 1, count - 1)
        columns[name] = pd.Series(np.array([f"{name} {i}" for i in range(count)])[chosen], dtype="str")
    return pd.DataFrame(columns)


def _label(snapshot: pd.DataFrame, seed: int) -> "pd.Series[bool]":
    """Draw who churns, or converts: each feature and some pairs have a part in it."""
    random = np.random.default_rng(seed)
    ranks = snapshot[NUMERIC].rank(pct=True).fillna(0.5).to_numpy() - 0.5
    weights = random.normal(size=len(NUMERIC)) * random.permutation(1 / np.arange(1, len(NUMERIC) + 1))
    odds = 6 * ranks @ weights + 8 * ranks[:, 0] * ranks[:, 5] + (snapshot["device"] == "device 0")
    return pd.Series(odds + random.logistic(size=len(snapshot)) > np.quantile(odds, 0.7))
