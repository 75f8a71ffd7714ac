"""docs/benchmarks.md, made from the results."""

import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from scipy.stats import binomtest

Result = dict[str, Any]

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"

TITLES = {
    "habitus": "**Habitus**, to a lake, in one commit",
    "duckdb_fast": "DuckDB SQL, the fastest we could write",
    "duckdb_lag": "DuckDB SQL, LAG and a running SUM",
    "polars_slots": "Polars, by (user, slot), categories, streaming",
    "pandas_groupby": "pandas, sort, diff, cumsum, groupby",
    "pyspark_windows": "PySpark `local[2]`, windows",
}

INTRODUCTION = """\
# Benchmarks

This page is made from the files in `benchmarks/results`, where `make studies` stores what it measures. Do not edit it.

    make studies                                        # all that is here, anew: some hours
    make studies ONLY=promotions,refits                 # some of it
    make bench                                          # 10 M events over 180 days
    make bench EVENTS=100000000                         # more of them
    make bench EVENTS=50000000 ONLY=duckdb_fast ROUNDS=5

Times are of one machine at one time: compare them within a table only.
"""

SESSIONS = """\
## All sessions of {events:,} events

{events:,} events over {days} days become {sessions:,} sessions. Median of {rounds} rounds in which all took turns
(in brackets the shortest and the longest), {date}.

{table}

{machine}
"""

ABOUT_SESSIONS = """\
### What is measured

From opening the files of events to the last byte of all 22 columns of the sessions contract on disk, in zstd-compressed
Parquet. Each run has a process of its own; imports do not count, and Spark is started and warm before its clock runs.
Memory is the most that the process and its children (the JVM) held at any moment. Files are in the page cache, for all.

Habitus does more than the others: it looks for sessions over 24 hours, checks keys and required columns, writes a file
for each day in the order of the key, and commits them to a Delta table.

Every run's result is compared with Habitus' by number of rows and a sum of hashes over every column, nulls included,
times in microseconds, amounts in millionths. A run that differs ends the benchmark.

- *DuckDB SQL, the fastest we could write*: the ideas of Habitus without its checks. Events are aggregated by user and
  slot of time as long as the gap, in chunks of about a million events; only slots that touch a neighbour are aggregated
  again; two workers with one thread each take turns with the chunks; sessions at borders of chunks are fused at last.
- *DuckDB SQL, LAG and a running SUM*: one query, as an analyst writes it.
- *Polars*: the same slots; the number of a row breaks ties, as files are in the order of time and event_id. It has no
  md5, so ids are made by Python's.
- *pandas*: as it is commonly written, for up to 10 M events.
- *PySpark*: window functions on two cores with 8 GB for the driver.

The others need not look for sessions over 24 hours, as the data has none.

### The data

`features/synthetic.py` makes it, the same for the same seed: users whose activity falls by a power law, each with a
session in two weeks on average; evenings four times as busy as mornings, weekends quieter; 8 events a session on
average, a fifth with one event, a few with hundreds; pauses log-normal, some of no time at all, so that ids break ties,
some of exactly the limit. Every contestant reads the files of the lake that Habitus wrote: one for each day, each event
once, in the order of time and event_id.
"""


def write_page() -> None:
    """Write the page from all results."""
    results = [json.loads(file.read_text()) for file in RESULTS.glob("*.json")]
    sections = [section(of_measure) for measure, section in SECTIONS.items() if (of_measure := _of(results, measure))]
    PAGE.write_text("\n".join([INTRODUCTION, *sections]))


def sessions_section(results: list[Result]) -> str:
    """Return a table for each size, and what it is about."""
    return "\n".join([*(_sessions_of(result) for result in results), ABOUT_SESSIONS])


def increment_section(results: list[Result]) -> str:
    """Return what a day costs beside a rebuild, on histories of several lengths."""
    parts = ["## A day's increment\n"]
    for result in results:
        lines = ["| history | events added | increment | rebuild | share |", "|---|---|---|---|---|"]
        for length in result["days"]:
            seconds = {
                kind: _median(result["runs"][f"{kind} {length}"], "seconds") for kind in ("increment", "rebuild")
            }
            share = f"{seconds['increment'] / seconds['rebuild']:.1%}".replace("%", " %")
            lines.append(
                f"| {length} days, {length * result['events']:,} events | {result['added'][str(length)]:,} "
                f"| {seconds['increment']:.2f} s | {seconds['rebuild']:.1f} s | {share} |"
            )
        shortest, longest = (
            _median(result["runs"][f"increment {length}"], "seconds")
            for length in (result["days"][0], result["days"][-1])
        )
        parts.append("\n".join(lines))
        parts.append(
            f"\nThe increment on the longest history took {longest / shortest:.2f} times as long as on the shortest. "
            "Each is compared with the rebuild: the same files, byte for byte. Median of "
            f"{len(result['runs'][f'increment {length}'])} rounds in turn, {result['date']}; the day brings 2 % of "
            f"late events, of up to 7 days before. {_machine(result['machine'])}\n"
        )
    return "\n".join(parts)


def memory_section(results: list[Result]) -> str:
    """Return what a small memory costs."""
    lines = ["## Little memory\n", "| events | memory | time | peak of the process |", "|---|---|---|---|"]
    for result in results:
        for name, limit in (("sessionize", "half of the machine's"), ("sessionize_in_1_gb", "1 GB")):
            taken = result["runs"][name]
            seconds, peak = _median(taken, "seconds"), _median(taken, "peak_bytes") / 1e9
            lines.append(f"| {result['events']:,} | {limit} | {seconds:.1f} s | {peak:.2f} GB |")
    return "\n".join([*lines, ""])


def snapshots_section(results: list[Result]) -> str:
    """Return what many snapshots cost beside one."""
    lines = [
        "## Snapshots of every feature\n",
        "| sessions | one | 12 weekly | of one | peak, one and 12 |",
        "|---|---|---|---|---|",
    ]
    for result in results:
        one, twelve = (result["runs"][name] for name in ("take_one", "take_weekly"))
        seconds = [_median(taken, "seconds") for taken in (one, twelve)]
        peaks = " and ".join(f"{_median(taken, 'peak_bytes') / 1e9:.1f} GB" for taken in (one, twelve))
        lines.append(
            f"| {result['sessions']:,} | {seconds[0]:.1f} s | {seconds[1]:.1f} s | {seconds[1] / seconds[0]:.1f}× "
            f"| {peaks} |"
        )
    return "\n".join([*lines, ""])


def scoring_section(results: list[Result]) -> str:
    """Return what scores and their reasons cost."""
    lines = [
        "## Scores and their reasons\n",
        "Both probabilities of every user by two models of 300 trees with 15 leaves and at most 4 levels; what raises",
        "both scores of every user, in sentences; and LightGBM's own contributions (`pred_contrib`), which are no",
        "sentences yet, measured on a sample and told in proportion. From a file of the snapshot.\n",
        "| users | features | probabilities | reasons | LightGBM's contributions | of the reasons' time | peak |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        taken = [result["runs"][name] for name in ("probabilities", "reasons_of_all", "contributions_by_lightgbm")]
        seconds = [_median(runs, "seconds") for runs in taken]
        own = seconds[2] * result["users"] / result["sample"]
        peaks = " and ".join(f"{_median(runs, 'peak_bytes') / 1e9:.1f} GB" for runs in taken[:2])
        lines.append(
            f"| {result['users']:,} | {result['features']} | {seconds[0]:.1f} s | {seconds[1]:.1f} s | {own:,.0f} s "
            f"| {own / seconds[1]:.1f}× | {peaks} |"
        )
    return "\n".join([*lines, ""])


def training_section(results: list[Result]) -> str:
    """Return what learning a propensity and judging it costs."""
    lines = [
        "## Training a propensity\n",
        "From files of weekly snapshots: the search, calibration, baselines, and all measures with their intervals.",
        "`benchmarks/bench.py training`.\n",
        "| users in each of the weeks | weeks | features | seconds for growing trees | all | peak |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        taken = result["runs"]["train"]
        lines.append(
            f"| {result['users']:,} | {result['weeks']} | {result['features']} | {result['budget_seconds']:.0f} s "
            f"| {_median(taken, 'seconds'):.0f} s | {_median(taken, 'peak_bytes') / 1e9:.1f} GB |"
        )
    return "\n".join([*lines, ""])


def segments_section(results: list[Result]) -> str:
    """Return what finding segments and assigning users to them costs."""
    lines = [
        "## Segments\n",
        "From a file of the snapshot: choosing among all candidates from 3 to 8 segments, fitting, stability, names,",
        "rules and descriptions; and assigning every user. `benchmarks/bench.py segments`.\n",
        "| users | features | find and describe | assign | peak, both |",
        "|---|---|---|---|---|",
    ]
    for result in results:
        found, assigned = (result["runs"][name] for name in ("find_segments", "assign_segments"))
        peaks = " and ".join(f"{_median(taken, 'peak_bytes') / 1e9:.1f} GB" for taken in (found, assigned))
        lines.append(
            f"| {result['users']:,} | {result['features']} | {_median(found, 'seconds'):.0f} s "
            f"| {_median(assigned, 'seconds'):.1f} s | {peaks} |"
        )
    return "\n".join([*lines, ""])


def publishing_section(results: list[Result]) -> str:
    """Return what delivering a version to PostgreSQL costs beside COPY by hand."""
    lines = [
        "## Publishing to PostgreSQL\n",
        "The first version: a row of assignments and a change for each user, in one transaction. By hand: psql's",
        "`\\copy` of CSV files with the same rows, made before, into empty tables with the same columns and keys, in",
        "one transaction, too. The rows in the tables are compared. `benchmarks/bench.py publishing`.\n",
        "| users | columns | Habitus | by hand | of the time by hand | peak |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        delivered, copied = (result["runs"][name] for name in ("deliver", "copy_by_hand"))
        seconds = [_median(taken, "seconds") for taken in (delivered, copied)]
        lines.append(
            f"| {result['users']:,} | {result['columns']} | {_spread(delivered)} | {_spread(copied)} "
            f"| {seconds[0] / seconds[1]:.2f}× | {_median(delivered, 'peak_bytes') / 1e9:.1f} GB |"
        )
    [*_, latest] = results
    rounds = len(latest["runs"]["deliver"])
    lines.append(
        f"\nMedian of {rounds} rounds in turn (in brackets the shortest and the longest), {latest['date']}; the server "
        f"runs on the same machine. {_machine(latest['machine'])}"
    )
    return "\n".join([*lines, ""])


def report_section(results: list[Result]) -> str:
    """Return what the report of a version costs."""
    lines = [
        "## The User Segment Report\n",
        "What `habitus report` does with a version that the whole job made of synthetic events over 90 days: numbers,",
        "charts, the page with all lists of users, tables, and the record in MLflow. `benchmarks/bench.py report`.\n",
        "| users | segments | sessions | time | peak | page |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        taken = result["runs"]["report"]
        lines.append(
            f"| {result['users']:,} | {result['segments']} | {result['sessions']:,} | {_spread(taken)} "
            f"| {_median(taken, 'peak_bytes') / 1e9:.1f} GB | {result['page_bytes'] / 1e6:.1f} MB |"
        )
    return "\n".join([*lines, ""])


def serving_section(results: list[Result]) -> str:
    """Return how long the API takes to answer, beside a bare route."""
    lines = [
        "## Serving lists of users\n",
        "Pages of 50 users, of all segments' lists in two orders, with a key, an ETag and compressed; beside it a bare",
        "route of FastAPI that does nothing. Server and client have a process each, on the same machine.",
        "`benchmarks/bench.py serving`.\n",
        "| users | in flight | 95 % within | of the bare route's | half within | requests per second | bare |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        users, bare = (result["runs"][kind] for kind in ("users", "bare"))
        p95_ms, bare_ms = (_median(loads, "p95_ms") for loads in (users, bare))
        lines.append(
            f"| {result['users']:,} | {result['in_flight']} | {p95_ms:.0f} ms | {p95_ms / bare_ms:.1f}× "
            f"| {_median(users, 'p50_ms'):.0f} ms | {_median(users, 'requests_per_second'):,.0f} "
            f"| {_median(bare, 'requests_per_second'):,.0f} |"
        )
    [*_, latest] = results
    lines.append(
        f"\nMedian of {len(latest['runs']['users'])} rounds of {latest['seconds']:g} s in turn, {latest['date']}. "
        f"{_machine(latest['machine'])}"
    )
    return "\n".join([*lines, ""])


def predictions_section(results: list[Result]) -> str:
    """Return how good churn is predicted on the real examples."""
    [result] = results
    lines = [
        "## Predictions on the examples\n",
        "Churn, on a snapshot later than all that was learnt from; 95 % intervals by user. "
        "`benchmarks/bench.py predictions`.\n",
        "| | rows | base rate | AUC | AUC of recency | gain in log loss on recency | on RFM | off by (ECE) | slope |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, told in result["told"].items():
        model, recency, gains = told["metrics"]["model"], told["metrics"]["recency"], told["gains"]
        lines.append(
            f"| {name} | {told['rows']['test']:,} | {model['base_rate']['value']:.1%} | {_interval(model['auc'])} "
            f"| {_interval(recency['auc'])} | {_interval(gains['recency'])} | {_interval(gains['rfm'])} "
            f"| {_interval(model['ece'])} | {_interval(model['calibration_slope'])} |"
        )
    lines += ["", *(f"- {name}: {told['reason']}" for name, told in result["told"].items()), ""]
    return "\n".join(lines)


def relearning_section(results: list[Result]) -> str:
    """Return what one slice more is worth, on the test and on the slice after it."""
    [result] = results
    lines = [
        "## Learning once more\n",
        "A model is chosen by the validation slice. With one slice more it has learnt from that slice too, where it is",
        "judged on the test; and from the test as well, where it is judged on the next complete slice. Log loss, all",
        "instants together, and the gain with its 95 % interval by user. `benchmarks/bench.py relearning`.\n",
        "| | judged on | instants | rows | log loss before | with one slice more | gain |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, told in result["told"].items():
        for where, words in (("test", "the test"), ("next", "the next slice")):
            if found := told[where]:
                lines.append(
                    f"| {name} | {words} | {found['instants']} | {found['rows']:,} | {found['before']:.4f} "
                    f"| {found['more']:.4f} | {_interval(found['gain'], 4)} |"
                )
    fitted, refitted = (sum(told["seconds"][kind] for told in result["told"].values()) for kind in ("fit", "refit"))
    lines.append(
        f"\nLearning once more took {refitted / fitted:.0%} of the time of choosing. {_machine(result['machine'])}"
    )
    return "\n".join([*lines, ""])


def promotions_section(results: list[Result]) -> str:
    """Return how often challengers are promoted that are known to be better or worse."""
    [result] = results
    lines = [
        "## Promotions of challengers whose truth is known\n",
        f"In each of {result['worlds']:,} worlds the odds of {result['rows']:,} users are known, and models see them",
        "through noise: more of it, or less, than the champion. Shares with their 95 % intervals (Wilson).",
        "`benchmarks/bench.py promotions`.\n",
        "| the challenger is | promoted | share |",
        "|---|---|---|",
    ]
    for challenger, promoted in result["told"].items():
        found = binomtest(promoted, result["worlds"]).proportion_ci(method="wilson")
        share = promoted / result["worlds"]
        lines.append(f"| {challenger} | {promoted:,} | {share:.1%} ({found.low:.1%}–{found.high:.1%}) |")
    return "\n".join([*lines, ""])


def refits_section(results: list[Result]) -> str:
    """Return how many users stay in their segments where these are fitted again."""
    *_, result = results
    shares = [one["share"] for one in result["told"]]
    kept = sum(one["ids_kept"] for one in result["told"])
    return (
        "## Refits of the same segments\n\n"
        f"The segments of {result['users']:,} users of examples/ecom are fitted again, with {len(shares)} other seeds\n"
        f"and orders of rows. In {kept} of these fits all ids are those of before; {min(shares):.1%} of users or more\n"
        f"stay in their segment, {median(shares):.1%} in the median fit. `benchmarks/bench.py refits`.\n"
    )


def telling_section(results: list[Result]) -> str:
    """Return what segments of the examples told of what came after they were found, and whether they stayed."""
    *_, result = results
    lines = [
        "## What segments tell of the future\n",
        "At each instant segments are found in an example with its configuration, and as many of their rivals. Each",
        "segment's mean outcome is learnt on the snapshot one window before and told about the users of the instant,",
        "whose outcomes came after all was fitted. AUC of churn, R² of the value (revenue, or events where nothing is",
        "sold); ahead of k-means on RFM with 95 % intervals of a paired bootstrap of users.",
        "`benchmarks/bench.py segments-tell`.\n",
        "| | found | AUC | R² | RFM k-means | RFM terciles | spending | AUC ahead | R² ahead |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, told in result["told"].items():
        for one in told["instants"]:
            outcomes = one["segments"]["tells"]["outcomes"]
            churn, *_, value = outcomes.values()
            both = {
                way: (churn["metrics"][way]["auc"]["value"], value["metrics"][way]["r2"]["value"])
                for way in churn["metrics"]
            }
            auc, r2 = both.pop("segments")
            rivals = " | ".join(f"{their_auc:.3f}, {their_r2:.3f}" for their_auc, their_r2 in both.values())
            lines.append(
                f"| {name} {one['as_of']} | {one['segments']['chosen']} | {auc:.3f} | {r2:.3f} | {rivals} "
                f"| {_ahead(churn['gains']['rfm_kmeans']['auc'])} | {_ahead(value['gains']['rfm_kmeans']['r2'])} |"
            )
    lines += [
        "\nThe same segments beside those found by behaviour alone (blind), which learn from no outcome: stability of",
        "refits, and the share of users who keep their segment when it is found again a week later by what serves.\n",
        "| | segments | largest | stability | blind | kept a week later | blind |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, told in result["told"].items():
        for one in told["instants"]:
            ours, blind = one["segments"], one["blind"]
            lines.append(
                f"| {name} {one['as_of']} | {ours['k']} | {ours['largest_share']:.0%} | {_stable(ours)} "
                f"| {_stable(blind)} | {ours['kept_share']:.0%} | {blind['kept_share']:.0%} |"
            )
    lines.append("\n* None was eligible; what is shown would not serve.\n")
    lines += [
        "Where the outcomes to learn from are shuffled among users, this is what as many clusters in each space tell",
        "(R², on average over outcomes), beside the blind ones; and how often segments of such a space were chosen:\n",
        "| | shuffles | blind | weighted: median, most | outlook: median, most | either tells more | chosen |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, told in result["told"].items():
        shuffled = told["shuffled"]
        spaces = {space: [one[space] for one in shuffled] for space in ("weighted", "outlook")}
        said = " | ".join(f"{median(values):.3f}, {max(values):.3f}" for values in spaces.values())
        more = sum(max(one["weighted"], one["outlook"]) > one["blind"] for one in shuffled)
        chosen = sum(one["chosen"] != "behaviour" for one in shuffled)
        lines.append(f"| {name} | {len(shuffled)} | {shuffled[0]['blind']:.3f} | {said} | {more} | {chosen} |")
    return "\n".join([*lines, ""])


def _ahead(gain: dict[str, float]) -> str:
    return f"{gain['value']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})"


def _stable(found: dict[str, Any]) -> str:
    return f"{found['stability']:.2f}{'*' if found['doubt'] else ''}"


def brakes_section(results: list[Result]) -> str:
    """Return what the brake holds of versions that are as they should be, and of accidents."""
    [result] = results
    kinds = result["told"]["daily"]["accidents"]
    lines = [
        "## What the brake holds\n",
        f"For {result['weeks']} weeks versions are published of a shop where every week is as the one before;",
        f"{result['users']:,} users come in all. Rules and brake are as they come, segments are found once. Before",
        "some versions, from the second on, an accident of each kind is published. `benchmarks/bench.py brakes`.\n",
        "| | " + " | ".join(result["told"]) + " |",
        "|---" * (1 + len(result["told"])) + "|",
    ]
    rows = {"as it should be": [(len(one["held"]), one["versions"]) for one in result["told"].values()]}
    for kind in kinds:
        tried = [one["accidents"][kind] for one in result["told"].values()]
        rows[kind] = [(sum(held), len(held)) for held in tried]
    for name, counts in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{held} of {tried} held" for held, tried in counts) + " |")
    return "\n".join([*lines, ""])


def _interval(estimate: dict[str, float], digits: int = 3) -> str:
    value, low, high = (
        f"{estimate[part]:.{digits}f}".replace("-", "\N{MINUS SIGN}") for part in ("value", "low", "high")
    )
    return f"{value} ({low}–{high})"


SECTIONS: dict[str, Callable[[list[Result]], str]] = {
    "sessions": sessions_section,
    "increment": increment_section,
    "memory": memory_section,
    "snapshots": snapshots_section,
    "predictions": predictions_section,
    "relearning": relearning_section,
    "promotions": promotions_section,
    "segments": segments_section,
    "segments-tell": telling_section,
    "refits": refits_section,
    "brakes": brakes_section,
    "training": training_section,
    "scoring": scoring_section,
    "publishing": publishing_section,
    "report": report_section,
    "serving": serving_section,
}
"""What is told of each measure, in this order."""


def _sessions_of(result: Result) -> str:
    runs = result["runs"]
    lines = [
        "| | time | of Habitus' | events per second | processor time | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    habitus = _median(runs["habitus"], "seconds")
    for name in sorted(runs, key=lambda name: _median(runs[name], "seconds")):
        seconds = _median(runs[name], "seconds")
        lines.append(
            f"| {TITLES[name]} | {_spread(runs[name])} | {seconds / habitus:.2f}× "
            f"| {result['events'] / seconds / 1e6:.2f} M | {_median(runs[name], 'cpu_seconds'):.1f} s "
            f"| {_median(runs[name], 'peak_bytes') / 1e9:.1f} GB |"
        )
    lines += [f"| {TITLES[name]} | failed: {why} | | | | |" for name, why in result["failed"].items()]
    return SESSIONS.format(
        **{name: result[name] for name in ("events", "days", "sessions", "date")},
        rounds=len(runs["habitus"]),
        table="\n".join(lines),
        machine=_machine(result["machine"]),
    )


def _machine(machine: dict[str, str]) -> str:
    named = {name: value for name, value in machine.items() if name not in ("cores", "processor", "memory", "system")}
    versions = ", ".join(f"{name} {value}" for name, value in named.items())
    return f"{machine['cores']} cores ({machine['processor']}), {machine['memory']}, {machine['system']}; {versions}."


def _spread(runs: list[dict[str, float]]) -> str:
    every = [run["seconds"] for run in runs]
    return f"{median(every):.1f} s ({min(every):.1f}–{max(every):.1f})"


def _median(runs: list[dict[str, float]], what: str) -> float:
    return median(run[what] for run in runs)


def _of(results: list[Result], measure: str) -> list[Result]:
    return sorted(
        (result for result in results if result["measure"] == measure),
        key=lambda result: result.get("users") or result["events"],
    )
