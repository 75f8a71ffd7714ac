"""Look into the lake, take the segments and a propensity apart, retrain, and compare in MLflow.

    marimo edit notebooks/explore.py                                            # in the browser
    marimo edit notebooks/explore.py -- --config examples/oulad/habitus.toml    # another configuration

Run the main job on the configuration first: what is explored here is what that left behind.
"""

import marimo

app = marimo.App(width="medium", app_title="Habitus: explore")

with app.setup:
    import marimo as mo
    import pandas as pd
    from sklearn.metrics import adjusted_rand_score

    from features.lake import Lake
    from features.snapshots import format_value, title
    from flows.configuration import load
    from flows.instant import resolve_as_of
    from flows.snapshot import past_dates, table_of
    from flows.train import LABEL_OF, find_serving, model_name, read_labelled, read_snapshots
    from models import evaluation, propensities, segments
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
    with Lake(configuration.lake) as _lake:
        as_of = resolve_as_of(None, configuration, _lake)
        snapshot = read_snapshots(_lake, configuration, [as_of])
        _assignments = _lake.read(ASSIGNMENTS)
        assignments = from_arrow(_assignments.filter(_assignments.as_of == as_of).to_pyarrow())
        dates = past_dates(configuration, _lake, as_of)
        mo.stop(dates is None, mo.md("The history is too short for a snapshot to test on."))
        _instants = [*dates.train, dates.test]
        labelled = {kind: read_labelled(_lake, configuration, _instants, LABEL_OF[kind]) for kind in LABEL_OF}
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
            mo.ui.table(segments.describe(model), selection=None),
            evaluation.plot_profiles(segments.profiles(model)),
        ]
    )
    return (model,)


@app.cell
def _(assignments, model, snapshot, configuration):
    _features = [name for name in table_of(configuration).schema.names if name in model.features]
    _by_segment = snapshot.merge(assignments[["user_id", "segment_name"]], on="user_id").groupby("segment_name")
    medians = _by_segment[_features].median().T
    mo.vstack(
        [
            mo.md("## Their features: the median user"),
            medians.apply(lambda row: [format_value(row.name, value) for value in row], axis=1, result_type="expand")
            .set_axis(medians.columns, axis=1)
            .rename(index=title),
        ]
    )
    return (medians,)


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
                f"Silhouette {other.silhouette:.2f} (serving: {model.silhouette:.2f}); "
                f"agreement with the serving segments {agreement:.2f} (adjusted Rand index, 1: the same)"
            ),
            mo.ui.table(segments.describe(other), selection=None),
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
    _label = LABEL_OF[kind.value]
    _frame = labelled[kind.value].drop(columns=left_out.value)
    _is_test = _frame["as_of"] == pd.Timestamp(dates.test)
    _train, _test = _frame[~_is_test], _frame[_is_test]
    challenger = propensities.fit(
        _train.drop(columns=_label), _train[_label], _train["user_id"], configuration.training.seed
    )
    probabilities = propensities.predict(challenger, _test)
    experiment = f"{configuration.name}/{kind.value}"
    with registry.run(experiment, f"explored without {', '.join(left_out.value) or 'nothing'}") as _run:
        _run.log_params({"left_out": left_out.value, "seed": configuration.training.seed})
        measured = evaluation.evaluate(_test[_label], probabilities)
        _run.log_metrics({f"model_{metric}": value for metric, value in measured.items()})
    evaluation.plot_calibration(_test[_label], probabilities)
    return experiment, measured


@app.cell
def _(experiment, measured, registry):
    runs = registry.runs(experiment)
    mo.vstack(
        [
            mo.md(f"### Runs of {experiment} in MLflow (this one: AUC {measured['auc']:.3f})"),
            mo.ui.table(runs[["run", "started_at", "model_auc", "model_log_loss"]], selection=None),
        ]
    )
    return (runs,)


if __name__ == "__main__":
    app.run()
