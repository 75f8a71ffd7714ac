"""A label of one's own, from the configuration to the published files, whose model gives ranks and no probabilities."""

import json
import re
import shutil
from datetime import UTC, datetime

import ibis
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from shops import Ran

from features.labels import labels_table
from features.lake import Lake
from flows.configuration import Configuration, ConfigurationError, load
from flows.publish import publish_version
from flows.score import assign_users
from flows.snapshot import describe_label, store_snapshots, table_of
from flows.train import version_tags
from models.label_card import LabelCard
from models.registry import Registry
from publish import scoring
from publish.assignments import assignments_table

AS_OF = datetime(2024, 6, 30, tzinfo=UTC)
REASON = "ECE .081 is above .03"
CHURN_7D = """
[publish.brake]
audience_change_max = 2  # nobody is in a segment any more
[labels.churn_7d]
kind = "churn"
horizon_days = 7
eligible_days = 90
eligible_by = "purchase_recency_days"
"""


def serve(configuration: Configuration, ran: Ran) -> None:
    """Have the model of churn serve as the label's own, its probabilities withheld."""
    trained = Registry(ran.configuration.mlruns).load("ecom-churn", ran.result["trained"]["churn"]["version"])
    assert trained is not None
    with configuration.open_lake() as lake:
        snapshot = lake.read(table_of(configuration), only=[AS_OF]).to_pandas()
    with Registry(configuration.mlruns).run("ranks/churn_7d", "test") as run:
        tags = version_tags(AS_OF, promoted=True)
        run.log_model(trained.model, "ranks-churn_7d", "made", snapshot, {"withheld": REASON}, tags=tags)


@pytest.fixture(scope="module")
def shop(ran: Ran, tmp_path_factory: pytest.TempPathFactory) -> Configuration:
    """Add a label to a shop that has run, give it another name, and take snapshots, score and publish again."""
    folder = tmp_path_factory.mktemp("scoring") / "shop"
    shutil.copytree(ran.configuration.folder, folder, symlinks=True)
    config = folder / "habitus.toml"
    config.write_text(config.read_text().replace('name = "ecom"', 'name = "ranks"') + CHURN_7D)
    configuration = load(config)
    with pytest.raises(ConfigurationError, match=rf"churn_7d_version is missing: run `habitus score {config}` first"):
        publish_version.fn(str(config), None, None)
    serve(configuration, ran)
    store_snapshots.fn(str(config), None, training=True)
    assign_users.fn(str(config), None)
    publish_version.fn(str(config), None, None)
    return configuration


def test_a_label_of_ones_own_is_a_column_of_labels(shop: Configuration) -> None:
    with Lake(shop.lake) as lake:
        labels = lake.read(labels_table(shop.labels.named)).to_pandas()

    known = labels[labels["churn_7d"].notna()]
    assert 0 < known["churn_7d"].astype(bool).mean() < 1
    assert len(known) < len(labels)


def described(shop: Configuration, ran: Ran, name: str) -> LabelCard:
    dates = ran.result["snapshots"]
    parts = dict.fromkeys(map(datetime.fromisoformat, dates["train"]), "train")
    parts |= {datetime.fromisoformat(dates[part]): part for part in ("validation", "test")}
    with Lake(shop.lake) as lake:
        return describe_label(lake, shop, name, AS_OF, parts)


@pytest.mark.parametrize("name", ["churn", "conversion", "churn_7d"])
def test_each_label_has_a_card_of_what_is_stored(shop: Configuration, ran: Ran, name: str) -> None:
    card = described(shop, ran, name)

    assert card.broken is None
    assert [one.part for one in card.snapshots] == ["train"] * 5 + ["validation", "test"]
    with Lake(shop.lake) as lake:
        labels = lake.read(labels_table(shop.labels.named)).to_pandas().dropna(subset=card.label.column)
    assert (card.row_count, card.user_count) == (len(labels), labels["user_id"].nunique())


def test_labels_that_were_made_under_other_settings_are_found(shop: Configuration, ran: Ran) -> None:
    text = shop.file.read_text()
    for other, said in (("horizon_days = 3", "say otherwise than the events"), ("eligible_days = 28", "do not add up")):
        key = other.partition(" ")[0]
        changed = shop.file.with_name("changed.toml")
        changed.write_text(re.sub(rf"(?s)(churn_7d.*){key} = \d+", rf"\g<1>{other}", text))
        assert said in str(described(load(changed), ran, "churn_7d").broken)


def test_those_are_scored_of_whom_the_label_is_asked(shop: Configuration) -> None:
    with Lake(shop.lake) as lake:
        snapshot = lake.read(table_of(shop), only=[AS_OF]).to_pandas().set_index("user_id")
        assigned = lake.read(assignments_table(shop.labels.named), only=[AS_OF]).to_pandas().set_index("user_id")

    asked = snapshot["purchase_recency_days"] <= 90
    assert asked.nunique() == 2
    assert (assigned["churn_7d_percentile"].notna() == asked.reindex(assigned.index)).all()


def test_ranks_and_reasons_are_published_where_probabilities_are_withheld(shop: Configuration) -> None:
    published = pd.read_parquet(shop.published / "latest" / "assignments.parquet")
    manifest = json.loads((shop.published / "latest" / "manifest.json").read_text())

    ranked = published[published["churn_7d_percentile"].notna()]
    assert published["churn_7d_probability"].isna().all()
    assert ranked["churn_7d_percentile"].agg(["min", "max"]).tolist() == [
        0,
        pytest.approx(100, abs=15),
    ]  # the highest score is shared
    assert ranked["churn_7d_reasons"].map(len).max() > 0
    assert set(published["churn_7d_version"]) == {1}
    assert manifest["withheld"] == {"churn_7d": REASON}


def test_users_scored_in_parts_are_ranked_among_all_where_probabilities_are_withheld(
    shop: Configuration, ran: Ran
) -> None:
    found = Registry(shop.mlruns).load("ranks-churn_7d", 1)
    assert found is not None
    asked = shop.labels.named["churn_7d"]
    serving = scoring.Serving(
        propensities={"churn_7d": scoring.Propensity(found.model, 1, asked, REASON)}, labels=tuple(shop.labels.named)
    )
    with Lake(shop.lake) as lake:
        snapshot = lake.read(table_of(shop), only=[AS_OF]).to_pandas().sort_values("user_id")
        parts = [
            scoring.score_part(snapshot.iloc[rows], serving) for rows in np.array_split(np.arange(len(snapshot)), 3)
        ]
        ranked = lake.engine.to_pyarrow(scoring.rank(ibis.memtable(pa.concat_tables(parts))).order_by("user_id"))

    assert ranked.to_pylist() == scoring.score(snapshot, serving).to_pylist()
