"""How likely a user is to churn or to convert: trees learnt in time's order, and calibrated on what came later."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

import lightgbm as lgb
import numpy as np
import optuna
import pandas as pd
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, OrdinalEncoder, StandardScaler

from features.labels import Purpose
from models.calibration import calibrate, cross_fit
from models.evaluation import Probabilities
from models.forest import ROWS_AT_ONCE, scorer

KEY = ["user_id", "as_of"]
RECIPE = 2
"""How a propensity is learnt: another number wherever the same rows would give another model."""
TREES_MAX = 1_000
PATIENCE_TREES = 30
DEFAULTS = {
    "num_leaves": 7,  # shallow: as good on the examples, better on few users, and reasons cost less
    "max_depth": 3,
    "learning_rate": 0.03,
    "min_child_samples": 50,
    "colsample_bytree": 0.8,
    "reg_lambda": 10.0,
}
"""What is tried first."""
PURPOSES = {"train": "learn from", "validation": "validate on", "test": "test on"}
RISES_WITH = {"recency_days": 1}
"""Features with which, all else equal, silence is likelier (1) or less likely (-1): nobody doubts it."""
SEARCHED_SHARE = 0.8
"""Of the budget's seconds: how many go to the search; the rest is for holding features to a direction."""
SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)
RFM = ("recency_days", "session_count", "purchase_count", "revenue_total")


class Blend(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Add up the log odds of trees, by their `share`, and of a logistic regression, by the rest.

    `trees` is a pipeline of a ColumnTransformer, numbers first and then categories, and an LGBMClassifier.

    Trees know no trend: where the values of features go up with time, a straight line goes on and trees do not.
    """

    def __init__(self, trees: Pipeline, line: Pipeline, share: float) -> None:
        self.trees = trees
        self.line = line
        self.share = share

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def fit(self, frame: pd.DataFrame, labels: pd.Series) -> Self:
        """Fit both parts: as many trees as they say, and the line on its columns."""
        (_, _, numeric), (_, _, categories) = self.trees[0].transformers
        places = [len(numeric) + i for i in range(len(categories))]
        self.trees.fit(frame, labels, trees__categorical_feature=places)
        [(_, _, columns)] = self.line[0].transformers
        self.line.fit(frame[columns], labels)
        return self

    @property
    def classes_(self) -> NDArray[np.bool_]:
        """Return the two classes."""
        return np.array([False, True])

    @property
    def feature_names_in_(self) -> NDArray[np.str_]:
        """Return the columns that the trees take; the line takes some of them."""
        names: NDArray[np.str_] = self.trees.feature_names_in_
        return names

    def decision_function(self, frame: pd.DataFrame) -> NDArray[np.float64]:
        """Return the log odds per row."""
        columns, score = self.trees[0], scorer(self.trees[-1], len(frame))
        found = np.empty(len(frame))

        def fill(first: int) -> None:
            rows = frame.iloc[first : first + ROWS_AT_ONCE]
            of_trees = score(_matrix(columns, rows))
            of_line = self.line.decision_function(rows[list(self.line.feature_names_in_)])
            found[first : first + len(rows)] = self.share * of_trees + (1 - self.share) * of_line

        Parallel(n_jobs=-1, prefer="threads")(delayed(fill)(first) for first in range(0, len(frame), ROWS_AT_ONCE))
        return found

    def predict(self, frame: pd.DataFrame) -> NDArray[np.bool_]:
        """Return the likelier class per row."""
        return self.decision_function(frame) > 0

    def predict_proba(self, frame: pd.DataFrame) -> NDArray[np.float64]:
        """Return the probability of both classes per row."""
        probability = expit(self.decision_function(frame))
        return np.column_stack([1 - probability, probability])


@dataclass(frozen=True)
class Budget:
    """Say how many trees' settings are tried at most, and for how many seconds trees grow in all.

    Trees that still grow when the time is over are taken as they are.
    """

    trials: int = 15
    seconds: float = 60


@dataclass(frozen=True)
class Trial:
    """Tell of one trial: the settings, the log loss on the validation time, how many trees; None: given up early."""

    number: int
    settings: dict[str, Any]
    log_loss: float | None
    trees: int
    seconds: float


@dataclass(frozen=True)
class Learned:
    """Hold a calibrated model, the calibration chosen, with the log loss of each, and how the trees were found.

    That is the trials, the best one's settings, the features held to a direction, and the trees' share in the blend.
    """

    model: CalibratedClassifierCV
    calibration: str
    calibration_losses: dict[str, float]
    trials: list[Trial] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    constrained: list[str] = field(default_factory=list)
    share_of_trees: float | None = None


OnTrial = Callable[[Trial], None]


def fit(
    train: pd.DataFrame,
    validation: pd.DataFrame,
    label: str,
    seed: int,
    budget: Budget,
    *,
    rises: bool = True,
    estimator: BaseEstimator | None = None,
    on_trial: OnTrial = lambda trial: None,
) -> Learned:
    """Fit boosted trees on snapshots, stop them and choose among them by later ones, and calibrate on these.

    Both frames hold one row per (user_id, as_of) and the bool column `label`. Float64 columns are numeric features,
    whose nulls are left to the trees; all others are categories, of which an unknown one counts as missing. `rises`
    says whether the label is of silence, which long absence makes likelier. Another `estimator` of scikit-learn is
    fitted as it is, and calibrated alike. The order of rows does not matter; the same rows, seed and number of trials
    give the same model, unless the seconds of the budget end it.

    Raises ValueError where a label has fewer than two users of a class to calibrate on, and where a row has no
    recency_days.
    """
    train, validation = train.iloc[_order(train)], validation.iloc[_order(validation)]
    numeric, categories = columns_of(train, label)
    names = [*numeric, *categories]
    if estimator is not None:
        model: Any = clone(estimator).fit(train[names], train[label])
        return Learned(*calibrate([model], validation, names, label, seed))
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan, encoded_missing_value=np.nan)
    columns = ColumnTransformer([("numeric", "passthrough", numeric), ("categories", encoder, categories)])
    x_train, x_validation = columns.fit_transform(train[names]), columns.transform(validation[names])
    grower = _Grower(
        x_train,
        train[label].to_numpy(),
        x_validation,
        validation[label].to_numpy(),
        categories=[len(numeric) + i for i in range(len(categories))],
        seed=seed,
    )
    begun = time.perf_counter()
    trials, trees, settings = _search(grower, seed, budget, begun + SEARCHED_SHARE * budget.seconds, on_trial)
    directions = [RISES_WITH.get(name, 0) * (1 if rises else -1) for name in names]
    constrained: list[str] = []
    if any(directions):
        held = grower.grow({**settings, "monotone_constraints": directions}, begun + budget.seconds)
        if grower.loss(held) <= grower.loss(trees):
            trees, constrained = held, [name for name, way in zip(names, directions, strict=True) if way]
    trees.set_params(n_estimators=trees.best_iteration_)  # as many whenever they are grown again
    line = fit_line(train, _rfm(train), label)
    blends = [Blend(Pipeline([("columns", columns), ("trees", trees)]), line, share) for share in SHARES]
    model, calibration, calibration_losses = calibrate(blends, validation, names, label, seed)
    blend = model.estimator.estimator
    return Learned(model, calibration, calibration_losses, trials, settings, constrained, blend.share)


def refit(learned: Learned, earlier: pd.DataFrame, latest: pd.DataFrame, label: str, seed: int) -> Learned:
    """Learn what was chosen once more, from all rows, those that it was chosen by included.

    The frames are as in `fit`. All that was chosen stays: settings, the number of trees, directions and the share. It
    is calibrated by a sigmoid: see `calibration.cross_fit`. The order of rows does not matter. Raises ValueError as
    `fit` does.
    """
    earlier, latest = earlier.iloc[_order(earlier)], latest.iloc[_order(latest)]
    model = cross_fit(learned.model.estimator.estimator, earlier, latest, label, seed)
    return replace(learned, model=model, calibration="sigmoid")


def _matrix(columns: ColumnTransformer, frame: pd.DataFrame) -> NDArray[np.float64]:
    """Return what the fitted `columns` make of a frame, looking each of its different texts up only once."""
    (_, _, numeric), (_, encoder, categories) = columns.transformers_[:2]
    found = np.empty((len(frame), len(numeric) + len(categories)))
    found[:, : len(numeric)] = frame[numeric].to_numpy()
    for i, name in enumerate(categories, start=len(numeric)):
        known = pd.Index(encoder.categories_[i - len(numeric)])
        codes, texts = pd.factorize(frame[name])
        places = known[known.notna()].get_indexer(pd.Index(texts)).astype(np.float64)
        found[:, i] = np.append(np.where(places < 0, np.nan, places), np.nan)[codes]  # the last, of null, has code -1
    return found


def columns_of(frame: pd.DataFrame, label: str) -> tuple[list[str], list[str]]:
    """Return the numeric features of labelled snapshots, and the categories."""
    features = frame.drop(columns=[*KEY, label])
    numeric = features.select_dtypes("float64").columns.tolist()
    return numeric, features.columns.difference(numeric, sort=False).tolist()


def predict(model: BaseEstimator, frame: pd.DataFrame) -> Probabilities:
    """Return the probability per row, from 0 to 1."""
    probabilities: Probabilities = model.predict_proba(frame[list(model.feature_names_in_)])[:, 1]
    return probabilities


def percentiles(probabilities: Probabilities) -> Probabilities:
    """Return the percentage of the other users with a lower probability, 0 to 100 (SQL's PERCENT_RANK)."""
    below = pd.Series(probabilities).rank(method="min").to_numpy() - 1
    return np.asarray(100 * below / max(len(below) - 1, 1), dtype=np.float64)


def fit_baselines(frame: pd.DataFrame, label: str) -> dict[str, Callable[[pd.DataFrame], Probabilities]]:
    """Fit what a model has to beat: the base rate, recency alone, and RFM (Hughes 1994), by logistic regression.

    RFM is recency_days and the logarithms of the counts of sessions and purchases and of revenue, as far as they are
    there. Raises ValueError where a row has no recency_days.
    """
    frame = frame.iloc[_order(frame)]
    base_rate = float(frame[label].mean())
    return {
        "base_rate": lambda rows: np.full(len(rows), base_rate),
        "recency": partial(predict, fit_line(frame, _rfm(frame)[:1], label)),
        "rfm": partial(predict, fit_line(frame, _rfm(frame), label)),
    }


def data_gate(
    slices: Mapping[Purpose, pd.DataFrame], label: str, minimum_rows: int, minimum_of_each_class: int
) -> str | None:
    """Say in numbers why no model can be learnt from these slices of time, or return None if one can.

    `slices` have the rows to train, to validate and to test on, by what they are for.
    """
    for purpose, rows in slices.items():
        if len(rows) < minimum_rows:
            return f"{len(rows):,} rows to {PURPOSES[purpose]}, at least {minimum_rows:,} are needed"
        positives = int(rows[label].sum())
        for kind, count in (("positive", positives), ("negative", len(rows) - positives)):
            if count < minimum_of_each_class:
                return f"{count:,} {kind} labels to {PURPOSES[purpose]}, at least {minimum_of_each_class:,} are needed"
        numbers = rows.select_dtypes("float64")
        infinite = np.isinf(numbers.to_numpy()).sum(axis=0)
        for name, count in zip(numbers.columns, infinite, strict=True):
            if count:
                return (
                    f"{name} is infinite in {count:,} rows to {PURPOSES[purpose]}: mend the events that it comes from"
                )
    return None


class _Grower:
    """Grow trees on one slice of time and stop them by a later one."""

    def __init__(
        self,
        x_train: NDArray[np.float64],
        y_train: NDArray[np.bool_],
        x_validation: NDArray[np.float64],
        y_validation: NDArray[np.bool_],
        categories: list[int],
        seed: int,
    ) -> None:
        self.train, self.validation = (x_train, y_train), (x_validation, y_validation)
        self.categories, self.seed = categories, seed

    def grow(
        self, settings: Mapping[str, Any], deadline: float, trial: optuna.Trial | None = None
    ) -> lgb.LGBMClassifier:
        """Grow trees until the validation's log loss has not fallen for some; give up if a trial is to be pruned.

        At the `deadline`, by the performance counter, the best so far are taken.
        """
        trees = lgb.LGBMClassifier(
            n_estimators=TREES_MAX,
            random_state=self.seed,
            deterministic=True,
            force_row_wise=True,  # with it the result depends on no number of threads
            verbose=-1,
            **settings,
        )
        callbacks: list[Callable[..., Any]] = [lgb.early_stopping(PATIENCE_TREES, verbose=False), _ending(deadline)]
        if trial is not None:
            callbacks.append(_pruning(trial))
        trees.fit(
            *self.train,
            eval_X=(self.validation[0],),
            eval_y=(self.validation[1],),
            eval_metric="binary_logloss",
            categorical_feature=self.categories,
            callbacks=callbacks,
        )
        return trees

    def loss(self, trees: lgb.LGBMClassifier) -> float:
        """Return the log loss on the validation time."""
        return float(trees.best_score_["valid_0"]["binary_logloss"])


def _ending(deadline: float) -> Callable[..., None]:
    best: tuple[float, int, Any] | None = None

    def end(env: lgb.callback.CallbackEnv) -> None:
        nonlocal best
        found = env.evaluation_result_list or []
        [(_, _, loss, *_)] = found
        if best is None or loss < best[0]:
            best = loss, env.iteration, found
        if time.perf_counter() > deadline:
            raise lgb.callback.EarlyStopException(best[1], best[2])

    return end


def _pruning(trial: optuna.Trial) -> Callable[..., None]:
    def report(env: lgb.callback.CallbackEnv) -> None:
        [(_, _, loss, *_)] = env.evaluation_result_list or []
        trial.report(loss, env.iteration)
        if trial.should_prune():
            raise optuna.TrialPruned

    return report


def _search(
    grower: _Grower, seed: int, budget: Budget, deadline: float, on_trial: OnTrial
) -> tuple[list[Trial], lgb.LGBMClassifier, dict[str, Any]]:
    """Try settings of trees within a budget, the defaults first; return the trials and the best trees."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(seed=seed)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=30, interval_steps=10)
    study = optuna.create_study(direction="minimize", sampler=sampler, pruner=pruner)
    study.enqueue_trial(DEFAULTS)
    trials: list[Trial] = []
    best: tuple[float, lgb.LGBMClassifier, dict[str, Any]] | None = None

    def attempt(trial: optuna.Trial) -> float:
        nonlocal best
        begun = time.perf_counter()
        settings = _suggest(trial)
        loss, trees = None, None
        try:
            trees = grower.grow(settings, deadline, trial)
            loss = grower.loss(trees)
        finally:
            taken = time.perf_counter() - begun
            trials.append(Trial(trial.number, settings, loss, trees.best_iteration_ if trees else 0, taken))
            on_trial(trials[-1])
            if time.perf_counter() > deadline:
                study.stop()
        if best is None or loss < best[0]:
            best = loss, trees, settings
        return loss

    study.optimize(attempt, n_trials=budget.trials)
    assert best is not None  # the first trial is never pruned
    return trials, best[1], best[2]


def _suggest(trial: optuna.Trial) -> dict[str, Any]:
    return {
        "num_leaves": trial.suggest_int("num_leaves", 3, 15),
        "max_depth": trial.suggest_int("max_depth", 2, 4),
        "learning_rate": trial.suggest_float("learning_rate", 0.02, 0.1, log=True),
        "min_child_samples": trial.suggest_int("min_child_samples", 10, 200, log=True),
        "colsample_bytree": trial.suggest_float("colsample_bytree", 0.3, 1.0),
        "reg_lambda": trial.suggest_float("reg_lambda", 0.1, 100.0, log=True),
    }


def _rfm(frame: pd.DataFrame) -> list[str]:
    if RFM[0] not in frame or frame[RFM[0]].isna().any():
        raise ValueError(f"{RFM[0]} is needed in every row: it alone is what a model has to beat")
    return [name for name in RFM if name in frame and frame[name].notna().all()]


def fit_line(frame: pd.DataFrame, names: list[str], label: str) -> Pipeline:
    """Fit a logistic regression on the logarithms of features."""
    logarithm = ColumnTransformer([("logarithm", FunctionTransformer(_signed_log1p), names)])
    steps = [("logarithm", logarithm), ("standardise", StandardScaler()), ("logistic", LogisticRegression())]
    return Pipeline(steps).fit(frame[names], frame[label])


def _signed_log1p(values: Any) -> Any:
    finite = np.nan_to_num(values)  # a line takes neither nulls (here 0) nor infinities; the trees do
    return np.sign(finite) * np.log1p(np.abs(finite))


def _order(frame: pd.DataFrame) -> NDArray[np.intp]:
    return frame.reset_index(drop=True).sort_values(KEY).index.to_numpy(dtype=np.intp)
