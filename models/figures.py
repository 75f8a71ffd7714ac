"""The figures that MLflow shows of a training."""

from collections.abc import Mapping, Sequence
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from features.snapshots import title
from models.candidates import Candidate
from models.evaluation import Probabilities, gains
from models.lineage import SizeChange

INK, PALE, GRID = "#22303c", "#9aa5b1", "#e6eaee"
COLOURS = ("#1b6ca8", "#e07a3f", "#4c9f70", "#8e5ea2")


def plot_gains(labels: pd.Series, models: Mapping[str, Probabilities]) -> Figure:
    """Draw, per named model, the share of positives found against the share of users approached.

    The first model is the one that the others are compared with.
    """
    figure, axes = _axes("Gain: whom to approach first", "Users approached, most likely first", "Positives found")
    axes.plot([0, 1], [0, 1], color=PALE, linestyle=(0, (4, 3)), linewidth=1.2, label="at random")
    for i, (name, probabilities) in enumerate(models.items()):
        approached, found = gains(labels, probabilities)
        width, layer = (2.4, 4) if i == 0 else (1.6, 3)
        axes.plot(approached, found, color=COLOURS[i % len(COLOURS)], linewidth=width, zorder=layer, label=name)
    _as_shares(axes)
    axes.legend(loc="lower right", frameon=False)
    return figure


def plot_calibration(labels: pd.Series, probabilities: Probabilities) -> Figure:
    """Draw how often it happened against how likely it was said to be, in ten groups of equally many rows.

    Bars are 95 % Wilson intervals (Wilson 1927); below, how many rows got which probability.
    """
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    _styled(axes, "Calibration: does it happen as often as predicted?", "", "How often it happened")
    axes.plot([0, 1], [0, 1], color=PALE, linestyle=(0, (4, 3)), linewidth=1.2, label="perfect")
    rows = pd.DataFrame({"predicted": probabilities, "actual": labels.to_numpy(dtype=float)})
    groups = rows.groupby(pd.qcut(rows["predicted"], 10, duplicates="drop"), observed=True)
    means, n = groups.mean(), groups.size()
    z = 1.96
    centre = (means["actual"] + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(means["actual"] * (1 - means["actual"]) / n + z**2 / (4 * n**2))
    axes.vlines(means["predicted"], centre - half, centre + half, color=COLOURS[0], alpha=0.35, linewidth=4)
    axes.plot(means["predicted"], means["actual"], "o-", color=COLOURS[0], linewidth=1.6, label="this model")
    _as_shares(axes)
    axes.legend(loc="upper left", frameon=False)
    _styled(counts, "", "Predicted probability", "Rows")
    counts.hist(probabilities, bins=np.linspace(0, 1, 41), color=COLOURS[0], alpha=0.75)
    return figure


def plot_profiles(profiles: pd.DataFrame) -> Figure:
    """Draw the segments' profiles (rows: segments, columns: features, in standard deviations) as a heatmap.

    The features are sorted by how much the segments differ in them.
    """
    order = profiles.std(ddof=0).sort_values(ascending=False, kind="stable").index
    table = profiles[order].T
    figure = Figure(figsize=(3.4 + 1.25 * table.shape[1], 1.9 + 0.27 * len(table)), layout="constrained")
    axes = figure.subplots()
    colours = LinearSegmentedColormap.from_list("low_to_high", [COLOURS[0], "#ffffff", COLOURS[1]])
    image = axes.imshow(table, cmap=colours, vmin=-2, vmax=2, aspect="auto")
    for (y, x), value in np.ndenumerate(table.to_numpy()):
        if abs(value) >= 0.5:
            sign = "+" if value > 0 else "\N{MINUS SIGN}"
            axes.text(x, y, f"{sign}{abs(value):.1f}", ha="center", va="center", fontsize=8, color=INK)
    names = [",\n".join(fill(part, 18) for part in name.split(", ")) for name in table.columns]
    axes.set_xticks(range(table.shape[1]), names, va="bottom")
    axes.set_yticks(range(len(table)), [title(feature) for feature in table.index])
    axes.xaxis.tick_top()
    axes.tick_params(length=0, colors=INK, labelsize=9)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(0.5, table.shape[1] - 1), minor=True)
    axes.set_yticks(np.arange(0.5, len(table) - 1), minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)
    bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.5, aspect=30, extend="both", pad=0.02)
    bar.set_label("Standard deviations from the average user", color=INK, fontsize=9)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, colors=INK, labelsize=8)
    return figure


def plot_size_changes(changes: Sequence[SizeChange]) -> Figure:
    """Draw the change of each segment's size: what users did and what the new model did, as stacked bars, in users."""
    figure = Figure(figsize=(8.4, 1.9 + 0.42 * len(changes)), layout="constrained")
    axes = figure.subplots()
    _styled(axes, "Who moved, the people or the line?", "Change of the segment's size, users", "")
    ends = np.zeros((2, len(changes)))  # of what is drawn so far: to the left of 0 and to the right
    for part, colour, label in (
        ("behaviour", COLOURS[0], "behaviour: users changed"),
        ("model", COLOURS[1], "model: the line was drawn anew"),
    ):
        widths = np.array([getattr(change, part) for change in changes])
        side = (widths > 0).astype(int)
        axes.barh(range(len(changes)), widths, 0.6, left=ends[side, range(len(changes))], color=colour, label=label)
        ends[side, range(len(changes))] += widths
    for y, change in enumerate(changes):
        net = change.now - change.before
        sign = "+" if net > 0 else "\N{MINUS SIGN}" if net < 0 else "±"
        said = f"{change.before:,} → {change.now:,} ({sign}{abs(net):,})"
        axes.annotate(
            said, (ends[1, y], y), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9, color=INK
        )
    axes.axvline(0, color=PALE, linewidth=1)
    names = [fill(f"{change.segment_id}  {change.name}", 34) for change in changes]
    axes.set_yticks(range(len(changes)), names, fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.35)  # room for the words
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2, frameon=False, fontsize=9)
    return figure


def plot_candidates(candidates: Sequence[Candidate], chosen: Candidate) -> Figure:
    """Draw the score of each number of segments, found in each way, and mark what was chosen.

    Hollow are those that are not eligible.
    """
    figure, axes = _axes("How many segments?", "Number of segments", "Score")
    ways = dict.fromkeys((one.space, one.method) for one in candidates)
    for colour, (space, method) in zip(COLOURS[:1] + COLOURS[2:] + (PALE,), ways, strict=False):
        found = [one for one in candidates if (one.space, one.method) == (space, method) and not one.kept]
        found.sort(key=lambda one: one.k)
        axes.plot([one.k for one in found], [one.score for one in found], "-", color=colour, label=f"{space}, {method}")
        for one in found:
            axes.plot(one.k, one.score, "o", color=colour, markerfacecolor="white" if one.refused else colour)
    axes.plot(chosen.k, chosen.score, "o", color=COLOURS[1], markersize=12)
    axes.annotate(
        f"{chosen.k} segments{', those that serve' if chosen.kept else ''}",
        (chosen.k, chosen.score),
        xytext=(0, 12),
        textcoords="offset points",
        ha="center",
        color=COLOURS[1],
        fontweight="bold",
    )
    axes.set_xticks(sorted({one.k for one in candidates}))
    axes.margins(x=0.2)
    axes.set_ylim(0, 1.3 * max(0.01, *(one.score for one in candidates)))  # from 0, or differences would look large
    axes.legend(frameon=False, loc="lower left")
    return figure


def _axes(heading: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.subplots()
    _styled(axes, heading, x, y)
    return figure, axes


def _styled(axes: Axes, heading: str, x: str, y: str) -> None:
    axes.set_title(heading, loc="left", fontsize=12, fontweight="bold", color=INK, pad=12)
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)


def _as_shares(axes: Axes) -> None:
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.yaxis.set_major_formatter("{x:.0%}")
