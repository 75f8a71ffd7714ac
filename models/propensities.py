"""How likely a user is to churn or to convert: calibrated probabilities, and the reasons for them."""

from dataclasses import dataclass

import lightgbm as lgb
import numpy as np
import pandas as pd
from joblib import parallel_config
from numpy.typing import NDArray
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, OrdinalEncoder, StandardScaler

from features.snapshots import in_words
from models.evaluation import Decision, Probabilities, decide, evaluate
from models.segments import quantity

KEY = ["user_id", "as_of"]
FOLD_MAX = 5

RIVALS = {"base_rate": "the base rate", "recency": "recency alone", "champion": "the champion"}


@dataclass(frozen=True)
class Contest:
    """Hold a challenger, what it and its rivals predicted and scored on the same later rows, and the decision."""

    model: CalibratedClassifierCV
    predicted: dict[str, Probabilities]
    measured: dict[str, dict[str, float]]
    decision: Decision


def fit(
    frame: pd.DataFrame, labels: pd.Series, groups: pd.Series, seed: int, n_jobs: int = -1
) -> CalibratedClassifierCV:
    """Fit boosted trees on snapshots and their labels, and calibrate them.

    `frame` holds one row per (user_id, as_of). Its float64 columns are numeric features, whose nulls are left
    to the trees; all others are categories, of which an unknown one counts as missing. `labels` (bool) and
    `groups` (what must not be torn apart, user_id) go with its rows by position. The sigmoid that calibrates
    (Platt 1999) is fitted on predictions for users that the trees had not seen. The order of the rows does
    not matter.

    Raises ValueError where a label has fewer than two groups.
    """
    order = _order(frame)
    frame, labels, groups = frame.iloc[order], labels.iloc[order], groups.iloc[order]
    numeric = frame.select_dtypes("float64").columns.difference(KEY, sort=False).tolist()
    categories = frame.columns.difference([*KEY, *numeric], sort=False).tolist()
    fold_count = min(FOLD_MAX, *(groups[labels == label].nunique() for label in (False, True)))
    if fold_count < 2:
        raise ValueError(f"calibration needs both labels from at least 2 users, and one has {fold_count}")
    features = frame[[*numeric, *categories]]
    folds = StratifiedGroupKFold(fold_count, shuffle=True, random_state=seed)
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan, encoded_missing_value=np.nan)
    columns = ColumnTransformer([("numeric", "passthrough", numeric), ("categories", encoder, categories)])
    trees = lgb.LGBMClassifier(
        n_estimators=150,
        learning_rate=0.03,
        num_leaves=7,  # shallow: as good on the examples, better on few users, and reasons cost less
        max_depth=3,
        min_child_samples=50,
        colsample_bytree=0.8,
        reg_lambda=10.0,
        random_state=seed,
        deterministic=True,
        force_row_wise=True,
        n_jobs=1,  # folds run beside each other instead: the result depends on no number of threads
        verbose=-1,
    )
    model = CalibratedClassifierCV(
        Pipeline([("columns", columns), ("trees", trees)]),
        method="sigmoid",
        ensemble=False,
        cv=list(folds.split(features, labels, groups)),
        n_jobs=n_jobs,
    )
    with parallel_config("threading"):
        model.fit(features, labels, trees__categorical_feature=[len(numeric) + i for i in range(len(categories))])
    model.cv = fold_count  # the folds list the rows of this frame, which a stored model should not carry along
    return model


def compete(
    train: pd.DataFrame, test: pd.DataFrame, label: str, champion: CalibratedClassifierCV | None, seed: int
) -> Contest:
    """Fit a challenger on labelled snapshots and judge it on later ones, beside what it has to beat.

    `label` names the bool column. The rivals are the base rate and recency alone, both as learnt from `train`, and
    the champion, if there is one.
    """
    x_train, y_train, x_test, y_test = train.drop(columns=label), train[label], test.drop(columns=label), test[label]
    model = fit(x_train, y_train, x_train["user_id"], seed)
    predicted = {
        "model": predict(model, x_test),
        "recency": predict(fit_recency_baseline(x_train, y_train), x_test),
        "base_rate": np.full(len(x_test), y_train.mean()),
    }
    if champion is not None:
        predicted["champion"] = predict(champion, x_test)
    measured = {who: evaluate(y_test, probabilities) for who, probabilities in predicted.items()}
    rivals = {RIVALS[who]: metrics for who, metrics in measured.items() if who in RIVALS}
    return Contest(model, predicted, measured, decide(measured["model"], rivals))


def fit_recency_baseline(frame: pd.DataFrame, labels: pd.Series) -> Pipeline:
    """Fit the simplest model worth beating: a logistic regression on the logarithm of recency_days (days)."""
    order = _order(frame)
    frame, labels = frame.iloc[order], labels.iloc[order]
    recency = ColumnTransformer([("recency", FunctionTransformer(np.log1p), ["recency_days"])])
    steps = [("recency", recency), ("standardise", StandardScaler()), ("logistic", LogisticRegression())]
    return Pipeline(steps).fit(frame[["recency_days"]], labels)


def predict(model: CalibratedClassifierCV | Pipeline, frame: pd.DataFrame) -> Probabilities:
    """Return the probability per row, from 0 to 1."""
    probabilities: Probabilities = model.predict_proba(frame)[:, 1]
    return probabilities


def percentiles(probabilities: Probabilities) -> Probabilities:
    """Return the percentage of the other users with a lower probability, 0 to 100 (SQL's PERCENT_RANK)."""
    below = pd.Series(probabilities).rank(method="min").to_numpy() - 1
    return np.asarray(100 * below / max(len(below) - 1, 1), dtype=np.float64)


def reasons(model: CalibratedClassifierCV, frame: pd.DataFrame, top: int = 3) -> list[list[str]]:
    """Return per row the features that raise its probability most, with their values in words.

    They are the largest positive contributions to the trees' log odds (SHAP; Lundberg and Lee 2017), at most
    `top`, and of a quantity at most one window. A null gives no reason.
    """
    columns, trees = model.calibrated_classifiers_[0].estimator
    matrix = columns.transform(frame)
    contributions = trees.predict(matrix, pred_contrib=True)[:, :-1]
    contributions[np.isnan(matrix)] = 0
    (_, _, numeric), (_, _, categories) = columns.transformers
    values = [frame[name].tolist() for name in (*numeric, *categories)]

    def words(row: int, i: int) -> str:
        value = values[i][row]
        return in_words(numeric[i], value) if i < len(numeric) else f"{categories[i - len(numeric)]}: {value}"

    quantities = [quantity(name) for name in (*numeric, *categories)]
    found = []
    for row, order in enumerate(np.argsort(-contributions, axis=1, kind="stable")):
        said: dict[str, str] = {}
        for i in order:
            if contributions[row, i] <= 0 or len(said) == top:
                break
            if quantities[i] not in said:
                said[quantities[i]] = words(row, i)
        found.append(list(said.values()))
    return found


def data_gate(
    labels_train: pd.Series, labels_test: pd.Series, minimum_rows: int, minimum_of_each_class: int
) -> str | None:
    """Say in numbers why no model can be trained and tested on these labels, or return None if one can."""
    for part, labels in (("training", labels_train), ("testing", labels_test)):
        if len(labels) < minimum_rows:
            return f"{len(labels):,} rows for {part}, at least {minimum_rows:,} are needed"
        positives = int(labels.sum())
        for kind, count in (("positive", positives), ("negative", len(labels) - positives)):
            if count < minimum_of_each_class:
                return f"{count:,} {kind} labels for {part}, at least {minimum_of_each_class:,} are needed"
    return None


def _order(frame: pd.DataFrame) -> NDArray[np.intp]:
    return frame.reset_index(drop=True).sort_values(KEY).index.to_numpy(dtype=np.intp)
