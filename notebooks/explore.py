"""Look into the lake, take the segments and a propensity apart, retrain, and compare in MLflow.

    marimo edit notebooks/explore.py                                            # in the browser
    marimo edit notebooks/explore.py -- --config examples/oulad/habitus.toml    # another configuration

Run the main job on the configuration first: what is explored here is what that left behind.
"""

import marimo

app = marimo.App(width="medium", app_title="Habitus: explore")

with app.setup:
    import math

    import marimo as mo
    from sklearn.metrics import adjusted_rand_score

    from features.labels import column_of
    from features.snapshots import format_value, title
    from flows.configuration import load
    from flows.instant import resolve_as_of
    from flows.snapshot import past_dates
    from flows.train import find_serving, model_name, read_labelled, read_snapshots
    from models import comparison, evaluation, figures, propensities, segments
    from models.registry import Registry
    from publish.assignments import ASSIGNMENTS, from_arrow


@app.cell
def _():
    config_file = mo.cli_args().get("config") or "examples/ecom/habitus.toml"
    return (config_file,)


@app.cell
def _(config_file):
    configuration = load(config_file)
    registry = Registry(configuration.mlruns)
    with configuration.open_lake() as _lake:
        as_of = resolve_as_of(None, configuration, _lake)
        snapshot = read_snapshots(_lake, configuration, [as_of])
        _assignments = _lake.read(ASSIGNMENTS)
        assignments = from_arrow(_assignments.filter(_assignments.as_of == as_of).to_pyarrow())
        dates = past_dates(configuration, _lake, as_of)
        mo.stop(dates is None, mo.md("The history is too short to learn from, to validate and to test on."))
        _instants = list(dates.purposes)
        labelled = {
            name: read_labelled(_lake, configuration, _instants, column_of(name)) for name in configuration.labels.named
        }
    mo.md(f"# {configuration.name} as of {as_of:%Y-%m-%d}\n{len(snapshot):,} users, {len(dates.train)} past snapshots")
    return as_of, assignments, configuration, dates, labelled, registry, snapshot


@app.cell
def _(as_of, configuration, registry, snapshot):
    _serving = find_serving(registry, model_name(configuration, "segments"), as_of, snapshot)
    mo.stop(_serving is None, mo.md(f"No segments serve yet: `habitus run {configuration.file}`."))
    model = segments.SegmentModel.from_dict(_serving.model, _serving.metadata)
    mo.vstack(
        [
            mo.md("## The segments that serve"),
            mo.plain(segments.describe(model)),
            figures.plot_profiles(segments.profiles(model, snapshot)),
        ]
    )
    return (model,)


@app.cell
def _(assignments, snapshot):
    by_feature = comparison.by_feature(snapshot, assignments)
    _medians = by_feature.xs("median", level="statistic")
    medians = _medians.apply(lambda row: [format_value(row.name, value) for value in row], axis=1, result_type="expand")
    by_attribute = comparison.by_attribute(snapshot, assignments)
    mo.vstack(
        [
            mo.md("## Side by side: the median user, and the share of each value"),
            mo.plain(medians.set_axis(_medians.columns, axis=1).rename(index=title)),
            mo.plain(
                by_attribute.pivot_table(index=["attribute", "value"], columns="segment", values="share", sort=False)
                .map("{:.0%}".format)
                .reset_index()
            ),
        ]
    )
    return by_attribute, by_feature


@app.cell
def _(model):
    k = mo.ui.slider(2, 10, value=len(model.segments) + 1, label="number of segments", show_value=True)
    mo.vstack([mo.md("## Other segments: what would change?"), k])
    return (k,)


@app.cell
def _(configuration, k, model, snapshot):
    other = segments.fit(snapshot, k.value, k.value, configuration.training.seed)
    _ids = [segments.assign(one, snapshot)["segment_id"] for one in (model, other)]
    agreement = adjusted_rand_score(*_ids)
    mo.vstack(
        [
            mo.md(
                f"Silhouette {other.chosen.silhouette:.2f} (serving: {model.chosen.silhouette:.2f}), "
                f"stability {other.chosen.stability:.2f} ({model.chosen.stability:.2f}); "
                f"agreement with the serving segments {agreement:.2f} (adjusted Rand index, 1: the same)"
            ),
            mo.plain(segments.describe(other)),
        ]
    )
    return agreement, other


@app.cell
def _(labelled, snapshot):
    kind = mo.ui.dropdown(list(labelled), value="churn", label="propensity")
    left_out = mo.ui.multiselect(
        [name for name in snapshot.columns if name not in ("user_id", "as_of")],
        value=["device", "source", "country"],
        label="features left out",
    )
    mo.vstack([mo.md("## A propensity with fewer features"), mo.hstack([kind, left_out], justify="start")])
    return kind, left_out


@app.cell
def _(configuration, dates, kind, labelled, left_out, registry):
    _label, _training = column_of(kind.value), configuration.training
    _frame = labelled[kind.value].drop(columns=left_out.value)
    _purposes = _frame["as_of"].map(dates.purposes)
    _train, _validation, _test = (_frame[_purposes == one] for one in ("train", "validation", "test"))
    learned = propensities.fit(
        _train,
        _validation,
        _label,
        _training.seed,
        propensities.Budget(_training.trials, _training.trial_seconds),
        rises=configuration.labels.named[kind.value].kind == "churn",
    )
    probabilities = propensities.predict(learned.model, _test)
    measured = evaluation.evaluate(_test[_label], probabilities, evaluation.Bootstrap(_test["user_id"]))
    experiment = f"{configuration.name}/{kind.value}"
    with registry.run(experiment, f"explored without {', '.join(left_out.value) or 'nothing'}") as _run:
        _run.log_params({"left_out": left_out.value, "seed": _training.seed, **learned.settings})
        _known = {f"model_{metric}": one.value for metric, one in measured.items() if math.isfinite(one.value)}
        _run.log_metrics(_known)
    figures.plot_calibration(_test[_label], probabilities)
    return experiment, measured


@app.cell
def _(experiment, measured, registry):
    runs = registry.runs(experiment).dropna(subset="model_auc")  # trials have none
    mo.vstack(
        [
            mo.md(
                f"### Runs of {experiment} in MLflow\nThis one: AUC {measured['auc'].value:.3f} "
                f"({measured['auc'].low:.3f} to {measured['auc'].high:.3f})"
            ),
            mo.plain(runs[["run", "started_at", "model_auc", "model_log_loss"]]),
        ]
    )
    return (runs,)


if __name__ == "__main__":
    app.run()
