"""Calibration: scores become probabilities, by what happened to users whom the scores were not learnt from."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from models.evaluation import Probabilities, losses

FOLD_MAX = 5
REFIT_MAX = 3
"""How often a model is fitted anew at most to calibrate it: each time takes as long as the last one."""
METHODS = ("sigmoid", "isotonic")


def calibrate(
    models: Sequence[Any], later: pd.DataFrame, names: list[str], label: str, seed: int
) -> tuple[CalibratedClassifierCV, str, dict[str, float]]:
    """Calibrate fitted models by sigmoid (Platt 1999) and isotonic regression (Zadrozny and Elkan 2002); keep the best.

    That is what has the lowest log loss for users of the later rows whom the calibration was not fitted on. Returns it
    calibrated, the method, and the lowest log loss with each method. Raises ValueError where fewer than two users have
    a label.
    """
    labels, folds = later[label], _folds(later, label, seed, FOLD_MAX)
    best: tuple[float, Any, str] | None = None
    measured: dict[str, float] = {}
    for model in models:
        scores = _scores(model, later[names])
        for method in METHODS:
            predicted = np.empty(len(later))
            for others, held_out in folds:
                predicted[held_out] = _calibrated_scores(method, scores[others], labels.iloc[others], scores[held_out])
            loss = float(losses(labels, predicted).mean())
            measured[method] = min(loss, measured.get(method, loss))
            if best is None or loss < best[0]:
                best = loss, model, method
    assert best is not None
    _, model, method = best
    fitted = CalibratedClassifierCV(FrozenEstimator(model), method=method, cv=len(folds))
    return fitted.fit(later[names], labels), method, measured


def cross_fit(model: Any, earlier: pd.DataFrame, latest: pd.DataFrame, label: str, seed: int) -> CalibratedClassifierCV:
    """Fit a model anew to all rows, and calibrate it on the latest, by models that have not learnt from their users.

    Such a model is fitted for each fold of the users of `latest`, to all rows but theirs. Scores of users that a model
    has learnt from are too sure, and those of earlier rows would say how sure it was then. By a sigmoid, always: the
    steps of an isotonic regression on other models' scores may say 0 or 1 where this one's are. `model` is fitted, and
    stays as it is. Raises ValueError as `calibrate` does.
    """
    names, labels = list(model.feature_names_in_), latest[label]
    rows = pd.concat([earlier, latest], ignore_index=True)
    folds = _folds(latest, label, seed, REFIT_MAX)
    scores = np.empty(len(latest))
    for _, held_out in folds:
        others = rows[~rows["user_id"].isin(latest["user_id"].iloc[held_out])]
        scores[held_out] = _scores(clone(model).fit(others[names], others[label]), latest[names].iloc[held_out])
    calibrated = CalibratedClassifierCV(FrozenEstimator(_Told()), method=METHODS[0], cv=len(folds))
    calibrated.fit(scores.reshape(-1, 1), labels)
    # scikit-learn calibrates one model by another's scores only if each is put into its place.
    fitted = FrozenEstimator(clone(model).fit(rows[names], rows[label]))
    calibrated.estimator = calibrated.calibrated_classifiers_[0].estimator = fitted
    calibrated.feature_names_in_ = np.array(names, dtype=object)
    return calibrated


class _Told(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Take the only column for the scores."""

    classes_ = np.array([False, True])

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def fit(self, scores: NDArray[np.float64], labels: pd.Series) -> Self:
        return self

    def decision_function(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        return scores[:, 0]

    def predict(self, scores: NDArray[np.float64]) -> NDArray[np.bool_]:
        return scores[:, 0] > 0


def _folds(rows: pd.DataFrame, label: str, seed: int, most: int) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Split rows by user into at most so many parts with both labels: places of the others, and of those held out."""
    labels, users = rows[label], rows["user_id"]
    count = min(most, *(users[labels == kind].nunique() for kind in (False, True)))
    if count < 2:
        raise ValueError(f"calibration needs both labels from at least 2 users, and one has {count}")
    return list(StratifiedGroupKFold(count, shuffle=True, random_state=seed).split(rows, labels, users))


def _scores(model: Any, frame: pd.DataFrame) -> NDArray[np.float64]:
    """Return what scikit-learn would calibrate."""
    given = model.decision_function(frame) if hasattr(model, "decision_function") else model.predict_proba(frame)[:, 1]
    return np.asarray(given, dtype=np.float64)


def _calibrated_scores(
    method: str, scores: NDArray[np.float64], labels: pd.Series, others: NDArray[np.float64]
) -> Probabilities:
    if method == "isotonic":
        regression = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(scores, labels)
        return np.asarray(regression.predict(others))
    logistic = LogisticRegression(C=1e6).fit(scores.reshape(-1, 1), labels)
    return np.asarray(logistic.predict_proba(others.reshape(-1, 1))[:, 1])
