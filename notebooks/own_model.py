"""Bring an estimator and a feature of your own, and let Habitus judge them as it judges its own.

    marimo edit notebooks/own_model.py                                           # in the browser
    marimo edit notebooks/own_model.py -- --config examples/oulad/habitus.toml   # another configuration

Run the main job on the configuration first: it leaves the labelled snapshots that are read here. Nothing is stored.
"""

import marimo

app = marimo.App(width="medium", app_title="Habitus: a model of your own")

with app.setup:
    from datetime import timedelta

    import marimo as mo
    import pandas as pd
    from sklearn.compose import make_column_selector, make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    from features.events import EVENTS
    from features.labels import column_of
    from features.sessions import SESSIONS
    from features.time_travel import known, with_features
    from flows.audit import audit
    from flows.configuration import load
    from flows.instant import resolve_as_of
    from flows.snapshot import past_dates, table_of
    from flows.train import read_labelled
    from models import figures, promotion
    from models.leaks import measure_alone
    from models.propensities import Budget


@app.cell
def _():
    config_file = mo.cli_args().get("config") or "examples/ecom/habitus.toml"
    return (config_file,)


@app.cell
def _(config_file):
    configuration = load(config_file)
    label = column_of("churn")
    with configuration.open_lake() as _lake:
        as_of = resolve_as_of(None, configuration, _lake)
        dates = past_dates(configuration, _lake, as_of)
        mo.stop(dates is None, mo.md("The history is too short to learn from, to validate and to test on."))
        frame = read_labelled(_lake, configuration, list(dates.purposes), label)
    _purposes = frame["as_of"].map(dates.purposes)
    slices = {_one: frame[_purposes == _one] for _one in ("train", "validation", "test")}
    mo.vstack(
        [
            mo.md(
                f"# A model of your own\nPast snapshots of {configuration.name} with the label `{label}`: a row for "
                "each user and instant, in three slices of time."
            ),
            mo.plain(
                frame.groupby(_purposes, sort=False).agg(
                    first=("as_of", "min"), last=("as_of", "max"), rows=(label, "size"), base_rate=(label, "mean")
                )
            ),
            mo.plain(frame.head()),
        ]
    )
    return as_of, configuration, dates, frame, label, slices


@app.cell
def _(configuration, label, slices):
    budget = Budget(configuration.training.trials, configuration.training.trial_seconds)
    default = promotion.compete(**slices, label=label, budget=budget)
    mo.vstack([mo.md("## What Habitus learns"), mo.md(default.decision.reason)])
    return budget, default


@app.cell
def _(default, label, slices):
    numbers, categories = make_column_selector(dtype_include="float64"), make_column_selector(dtype_exclude="float64")
    filled = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
    columns = make_column_transformer(
        (make_pipeline(filled, StandardScaler()), numbers),
        (OneHotEncoder(handle_unknown="ignore"), categories),
    )
    estimator = make_pipeline(columns, LogisticRegression(C=0.01, max_iter=1_000))
    mine = promotion.compete(**slices, label=label, estimator=estimator, champion=default.learned.model)
    mo.vstack(
        [
            mo.md(
                "## An estimator of your own\nAnything of scikit-learn that gives probabilities: here a logistic "
                "regression on all features. It is calibrated on the same later rows, measured on the same test, and "
                "has to beat the same baselines. The model above is the champion that it challenges."
            ),
            mo.md(mine.decision.reason),
        ]
    )
    return (mine,)


@app.cell
def _(default, label, mine, slices):
    _happened, _default, _mine = slices["test"][label], default.predicted, mine.predicted
    curves = {"my own": _mine["model"], "default": _default["model"], "recency alone": _default["recency"]}
    mo.hstack([figures.plot_gains(_happened, curves), figures.plot_calibration(_happened, _mine["model"])])
    return


@app.function
def active_day_count_28d(events, sessions, as_of):
    """Days with an event in 28 days."""
    seen = known(events, as_of)
    recent = seen.filter(seen.occurred_at >= as_of - timedelta(days=28))
    return recent.group_by("user_id").agg(active_day_count_28d=recent.occurred_at.date().nunique())


@app.function
def days_to_next_event(events, sessions, as_of):
    """Days to the next event: a leak, since nobody knows it at as_of."""
    later = events.filter(events.occurred_at >= as_of)
    return later.group_by("user_id").agg(
        days_to_next_event=(later.occurred_at.min().epoch_seconds() - as_of.timestamp()) / 86_400
    )


@app.cell
def _(as_of, configuration):
    audited = audit(configuration, as_of, [active_day_count_28d, days_to_next_event])
    mo.vstack(
        [
            mo.md(
                "## A feature of your own\nA function of events, sessions and an instant that gives for each user a "
                "column named like itself. The audit takes past snapshots again after what came later was cut, "
                "moved, shuffled and made up. A feature that notices knows the future:"
            ),
            mo.md("\n".join(f"- {_finding}" for _finding in audited.findings) or "Nothing found."),
        ]
    )
    return (audited,)


@app.cell
def _(configuration, dates, label, slices):
    with configuration.open_lake() as _lake:
        _events, _sessions, _snapshots = map(_lake.read, (EVENTS, SESSIONS, table_of(configuration)))

        def _users(events, sessions, instant):
            return _snapshots.filter(_snapshots.as_of == instant).select("user_id", "as_of")

        _take = with_features(_users, active_day_count_28d, days_to_next_event)
        made = pd.concat([_take(_events, _sessions, _instant).to_pandas() for _instant in dates.purposes])
    wider = {_purpose: _rows.merge(made, on=["user_id", "as_of"]) for _purpose, _rows in slices.items()}
    alone = pd.DataFrame(measure_alone(wider["train"], [label])).set_index("feature")
    mo.vstack(
        [
            mo.md(f"How well each feature tells `{label}` alone. A leak tempts by its AUC:"),
            mo.plain(alone[["auc", "low", "high"]].head()),
        ]
    )
    return alone, made, wider


@app.cell
def _(budget, default, label, wider):
    _honest = {_purpose: _rows.drop(columns="days_to_next_event") for _purpose, _rows in wider.items()}
    with_feature = promotion.compete(**_honest, label=label, budget=budget, champion=default.learned.model)
    mo.vstack([mo.md("Learnt with the honest one, and judged as before:"), mo.md(with_feature.decision.reason)])
    return (with_feature,)


@app.cell
def _(default, mine, with_feature):
    _contests = {"default": default, "my own": mine, "default with my feature": with_feature}
    table = pd.DataFrame(
        {
            _who: {
                _metric: f"{_one.value:.3f} ({_one.low:.3f} to {_one.high:.3f})"
                for _metric, _one in _contest.measured["model"].items()
                if _metric in ("auc", "log_loss", "ece", "calibration_slope")
            }
            for _who, _contest in _contests.items()
        }
    ).T
    mo.vstack([mo.md("## All three, on the same later rows"), mo.plain(table)])
    return (table,)


if __name__ == "__main__":
    app.run()
