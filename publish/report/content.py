"""Report: all that a version's report says, as report.json holds it. Page, tables and API show it and compute nothing.

What they may rely on:

- A count is an integer, or the text "suppressed" where it is under `k`, or would give away one that is. A rate, a
  measure and a figure are an object, or "suppressed" likewise, or null where they do not apply, as a share of carts
  where there are none. No number that is shown is to be corrected, and none that is suppressed is to be worked out.
- Numbers are of all users of the version. Lists of users (`top_users` and users.parquet) are of those whom the
  destination `published` may know: without consent, and held out, nobody is on a list.
- Shares, rates, stability, precision and recall are from 0 to 1, durations in seconds, instants in UTC; hours and
  weekdays are those of `time_zone`. Intervals are of 95 %.
- `segments` has the discovered ones, the largest first, then the named ones, the largest first; ids are unique. Where
  `withheld` says why a segment has no numbers, its counts are suppressed (0 where nobody is in it), its lists empty.
- Texts are plain text as people or data gave it: they are to be escaped, and may hold anything.
- Lists are in the order in which they are to be read. The same version gives the same bytes.

A report is a folder that appears whole and does not change (but an erasure writes it anew, under another name), in the
form of `publish.destinations.folders`: <published>/reports/<name>, with a link `latest`, and a manifest.json in it with
`version`, `as_of` and the files. Beside report.json and report.html are tables/*.csv, and users.parquet, with a row for
each listed user, sorted by user_id: user_id; user_number, which stands for the user where ids are personal (1 to the
number of users, in no order that says anything); of ASSIGNMENTS segment_id, segment_name, segment_strength,
segment_strengths, runner_up_segment_id, rule_segments, lifecycle_stage, rfm_3, rfm_5, and for each label
<label>_probability, <label>_percentile and <label>_reasons; last_seen_at (the end of the last session), session_count,
session_count_28d; and attribute_<name> for each attribute of the configuration.
"""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from models import rules
from models.condition_words import in_words

REPORT_VERSION = "1.1"
"""Of report.json. An added key raises the second number, anything else the first."""
SUPPRESSED: Literal["suppressed"] = "suppressed"
"""Stands where a number would be that is not shown."""
TOP_USERS = 20

Suppressed = Literal["suppressed"]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)] | Suppressed


class Content(BaseModel):
    """A part of a report; it never changes."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Estimate(Content):
    """A figure and its 95 % interval, from `low` to `high`; null where the rows do not tell."""

    value: float
    low: float | None = None
    high: float | None = None


Rate = Estimate | Suppressed | None
"""A share from 0 to 1 with its interval."""


class Bar(Content):
    """One value of a breakdown: how many have it here, and which share; and which share of all users' have it.

    `value` is as in the data; null: none is known. `label` says it to people; the values that are too rare to be told
    of one by one are together the last but null, as "all other values".
    """

    value: str | None
    label: str
    count: Count
    share: Rate
    share_of_all: Rate


class Breakdown(Content):
    """How users, or their sessions, of a segment are spread over values.

    `name` is device, source, country (each user's most frequent), hour (0 to 23), weekday (1, Monday, to 7), or an
    attribute of users. `personal`: only for those who may see personal attributes.
    """

    name: str
    title: str
    counted: Literal["users", "sessions"]
    personal: bool
    bars: list[Bar]


class Metric(Content):
    """A measure of sessions here and of all users.

    `unit` is seconds, share (0 to 1) or number.
    """

    name: str
    title: str
    unit: Literal["seconds", "share", "number"]
    here: Rate
    everyone: Rate


class Difference(Content):
    """What is typical of a segment: a feature's value here and among everyone else.

    `statistic` says what the values are: median, mean, "any": the share of users above 0, "below": of those below 0, or
    "share": that with this `category` of a text column; of shares there are intervals. `among` says of whom they are,
    where the feature does not apply to all users. `difference` is that of means in standard deviations
    (as Cohen's d): 0.2 is small, 0.5 medium, 0.8 large. `q` is the share of false ones among differences as sure as
    this one (Benjamini and Hochberg 1995); only those of at most 0.05 are told. `words` say it in a line, and `clause`
    as a part of a sentence.
    """

    feature: str
    category: str | None
    title: str
    statistic: Literal["median", "mean", "any", "below", "share"]
    here: Estimate
    others: Estimate
    here_text: str
    others_text: str
    difference: float
    q: float
    words: str
    clause: str
    among: str | None = None
    personal: bool = False


class TopUser(Content):
    """A listed user of a segment, by activity: sessions in the last 28 days, and when the last session ended.

    Where ids are personal, `user_id` is null for those who may not see them, and `user_number` stands for it.
    """

    user_id: str | None
    user_number: int
    session_count_28d: int
    last_seen_at: datetime


class TrendPoint(Content):
    """How large a segment was at a version; `users` of all who were there."""

    version: int
    as_of: datetime
    users: Count
    share: Rate


class Change(Content):
    """How many entered and left since the last version for a reason: its name, and in words."""

    reason: str
    words: str
    entered: Count
    left: Count


class Changes(Content):
    """Who entered and left since the last version, as the destination `published` knows it.

    In all and by reason. Counts are of users of a segment; in the overview they are of all discovered segments
    together, so who moves from one to another entered once and left once.
    """

    version: int
    as_of: datetime
    entered: Count
    left: Count
    reasons: list[Change]


class Propensity(Content):
    """The probabilities of a label among a segment's users: how many have one, their mean, and how they spread.

    `histogram` counts users in the bins of `edges` (one more than there are bins; the last bin has its upper edge).
    `happened` is how often it did happen among users of the segment in the test of the model, and `predicted_off` how
    far predictions were off on average there (expected calibration error), null where the test had too few of them.
    `withheld` says why there are no probabilities.
    """

    label: str
    title: str
    scored: Count
    mean: Rate
    edges: list[float]
    histogram: list[Count]
    happened: Estimate | None
    predicted_off: Estimate | None
    withheld: str | None


class Rule(Content):
    """A condition in the language of named segments, and in words.

    Of a discovered segment it finds nearly the same users: `precision` of those it finds are of the segment, and it
    finds `recall` of the segment, measured on `sample_size` users at the training. Of a named one it is the definition,
    and these are null; `thresholds` are what its percentiles and grades are now, by "feature p90" or "feature grade 5".
    """

    text: str
    words: str
    precision: Share | None
    recall: Share | None
    coverage: Share | None
    sample_size: int | None
    thresholds: dict[str, float | None]


class Lineage(Content):
    """What became of a discovered segment at the last training, in words, and since when it is there."""

    event: str
    kind: str
    since: datetime | None
    from_ids: list[str]
    to_ids: list[str]


class Suggestion(Content):
    """What a segment like this is good for: fixed texts by kind of segment, not advice about anybody."""

    title: str
    text: str


class Segment(Content):
    """A segment, discovered or named: who is in it, what is typical, where it comes from, and what to do with it.

    `description` is a sentence for people; `flags` say why it is of little use, if it is. `stability` (1: every refit
    finds the same users) and `lineage` are of discovered ones. `withheld` says why its numbers are not shown.
    `changes` are null in the first version.
    """

    segment_id: str
    name: str
    kind: Literal["discovered", "named"]
    description: str
    users: Count
    share: Rate
    active_7d: Count
    active_28d: Count
    trend: list[TrendPoint]
    typical: list[Difference]
    metrics: list[Metric]
    breakdowns: list[Breakdown]
    propensities: list[Propensity]
    changes: Changes | None
    top_users: list[TopUser]
    rule: Rule | None
    stability: Share | None
    lineage: Lineage | None
    flags: list[str]
    suggestions: list[Suggestion]
    withheld: str | None


class Overview(Content):
    """All users of the version.

    Active users had a session in the last 7 or 28 days before as_of. Of those of 28 days the new ones came for the
    first time then, and the returning ones before. The lost ones came in the 28 days before these and not since.
    `lifecycle` has a bar for each stage. `rejected_rows` are rows of the source, by reason.
    """

    users: Count
    sessions: Count
    active_7d: Count
    active_28d: Count
    new_28d: Count
    returning_28d: Count
    lost_28d: Count
    rejected_rows: dict[str, int]
    lifecycle: list[Bar]
    metrics: list[Metric]
    breakdowns: list[Breakdown]
    trend: list[TrendPoint]
    changes: Changes | None


class Compared(Content):
    """A feature of a segment: its median and mean among users who have it, and the share of users who do."""

    median: float | Suppressed | None
    mean: float | Suppressed | None
    known: float | Suppressed


class ComparedFeature(Content):
    """A feature over all segments, by segment_id, and over all users.

    `name` is as in snapshots; `features.snapshots.format_value(name, value)` writes its values with their unit.
    """

    name: str
    title: str
    everyone: Compared
    segments: dict[str, Compared]


class Overlap(Content):
    """How many users of a named segment are in each discovered one, by its id; `users` in all."""

    segment_id: str
    users: Count
    discovered: dict[str, Count]


class Comparison(Content):
    """Segments side by side, feature by feature; by attribute, compare `breakdowns` of segments, which are alike."""

    features: list[ComparedFeature]
    overlap: list[Overlap]


class Gain(Content):
    """By how much (nats of log loss) a model is better than a rival on the same later rows; above 0 is better."""

    rival: str
    title: str
    gain: Estimate


class CalibrationBin(Content):
    """Users whose predictions are alike, in the model's test: the mean prediction, how often it happened, how many."""

    predicted: Share
    happened: Estimate
    users: int


class Driver(Content):
    """A feature that moves predictions, and how much of all that moves them is due to it (mean of absolute SHAP)."""

    feature: str
    title: str
    share: Share
    personal: bool = False


class Model(Content):
    """What predicts a label: what the label says, how good it is, and which version serves since when.

    `version` is null where none serves, and then the rest is null or empty but for the definition. `base_rate` is how
    often it happened in the test. `metrics` are those of `models.evaluation.evaluate`, on users the model had not seen.
    `withheld` says why only ranks are published, and `reason` why the version was promoted, or not.
    """

    label: str
    title: str
    kind: Literal["churn", "conversion"]
    definition: str
    version: int | None
    trained_at: datetime | None
    serves_since: datetime | None
    tested_at: datetime | None
    tested_users: int | None
    base_rate: Estimate | None
    metrics: dict[str, Estimate]
    gains: list[Gain]
    calibration: list[CalibrationBin]
    drivers: list[Driver]
    reason: str | None
    withheld: str | None


class Foretold(Content):
    """One figure (AUC and R² of a label, R² and Gini of a value) of what segments told of an outcome, and others did.

    `rivals` has the figure of each rival, as many segments, by its title; `ahead` is by how much the segments are ahead
    of the first of them.
    """

    outcome: str
    metric: str
    segments: float
    rivals: dict[str, float]
    ahead: Estimate


class Tells(Content):
    """What segments that were found in the same way at `as_of` told of what its users did next, in days.

    `sentence` says it in short, `figures` in full. Means were learnt on the snapshot of `learnt_as_of`.
    """

    learnt_as_of: datetime
    as_of: datetime
    days: str
    users: int
    sentence: str
    figures: list[Foretold]


class Attribute(Content):
    """An attribute of users that the configuration names."""

    name: str
    title: str
    personal: bool


class Report(Content):
    """All that the report of a version says.

    `source` is the configuration's name, `model_versions` the version of each kind of model, null where none serves.
    `k` is the smallest count that is shown. `user_ids_personal`: ids are only for those who may see them.
    `users_listed` is the number of rows of users.parquet. `withheld` says in sentences what is left out, and why.
    `tells` is null where no outcomes were complete when the segments were found, or none were found.
    """

    report_version: str = REPORT_VERSION
    source: str
    version: int
    as_of: datetime
    time_zone: str
    k: int
    model_versions: dict[str, int | None]
    configuration: str
    attributes: list[Attribute]
    user_ids_personal: bool
    users_listed: int
    overview: Overview
    segments: list[Segment]
    comparison: Comparison
    models: list[Model]
    tells: Tells | None = None
    withheld: list[str]

    def segment(self, segment_id: str) -> Segment | None:
        """Return a segment by its id; None where there is none."""
        return next((one for one in self.segments if one.segment_id == segment_id), None)

    def without_personal(self) -> "Report":
        """Return the report for those who may not see what is personal: without it, and users are numbers.

        Left out are breakdowns, differences and drivers of personal attributes, and rules that need one. The sentence
        of such a rule stays where a person wrote it.
        """
        personal = {one.name for one in self.attributes if one.personal}
        segments = [_without_personal(one, personal, self.user_ids_personal) for one in self.segments]
        breakdowns = [one for one in self.overview.breakdowns if not one.personal]
        models = [
            one.model_copy(update={"drivers": [driver for driver in one.drivers if not driver.personal]})
            for one in self.models
        ]
        overview = self.overview.model_copy(update={"breakdowns": breakdowns})
        attributes = [one for one in self.attributes if not one.personal]
        update = {"segments": segments, "overview": overview, "models": models, "attributes": attributes}
        return self.model_copy(update=update)


def _without_personal(segment: Segment, personal: set[str], ids: bool) -> Segment:
    rule, description = segment.rule, segment.description
    if rule is not None and rules.needs(rule.text, personal):
        if segment.kind == "named" and description in (rule.text, in_words(rule.text)):
            description = rules.PERSONAL
        rule = None
    users = [one.model_copy(update={"user_id": None}) if ids else one for one in segment.top_users]
    return segment.model_copy(
        update={
            "breakdowns": [one for one in segment.breakdowns if not one.personal],
            "typical": [one for one in segment.typical if not one.personal],
            "rule": rule,
            "description": description,
            "top_users": users,
        }
    )
