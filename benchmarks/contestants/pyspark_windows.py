"""PySpark on two cores: a window finds where sessions begin and numbers them, GROUP BY adds them up."""

import os
import sys
from functools import cache
from pathlib import Path

from pyspark.sql import SparkSession, Window
from pyspark.sql import functions as F  # noqa: N812

from contestants import EVENT_FILES, GAP_US, OF_FIRST, READ, SUMMED

DRIVER_MEMORY = "8g"


@cache
def start() -> SparkSession:
    """Start the engine, and let it do a first small job."""
    os.environ["PYSPARK_PYTHON"] = sys.executable
    spark = (
        SparkSession.builder.master("local[2]")
        .config("spark.driver.memory", DRIVER_MEMORY)
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.sql.shuffle.partitions", "8")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    spark.range(1000).groupBy(F.col("id") % 10).count().collect()
    return spark


def sessionize(lake: Path, out: Path) -> None:
    """Write SESSIONS in one job over all events."""
    files = [str(file) for file in sorted(lake.glob(EVENT_FILES))]
    events = start().read.parquet(*files).select(*READ)
    in_order = Window.partitionBy("user_id").orderBy("occurred_at", "event_id")
    at_us = F.unix_micros("occurred_at")
    begins = F.coalesce((at_us - F.lag(at_us).over(in_order) > GAP_US).cast("int"), F.lit(0))
    numbered = events.withColumn("begins", begins).withColumn("number", F.sum("begins").over(in_order))
    earned = F.expr("CASE event_name WHEN 'purchase' THEN revenue WHEN 'refund' THEN -abs(revenue) END")
    order = "struct(occurred_at, event_id)"
    sessions = (
        numbered.groupBy("user_id", "number")
        .agg(
            F.min("occurred_at").alias("started_at"),
            F.max("occurred_at").alias("ended_at"),
            F.count("*").alias("event_count"),
            *(F.count_if(F.col("event_name") == name).alias(column) for column, name in SUMMED.items()),
            F.coalesce(F.sum(F.round(earned * 1_000_000).cast("long")), F.lit(0)).alias("revenue_micros"),
            F.expr(f"min_by(struct({', '.join(OF_FIRST)}), {order})").alias("first"),
            F.expr(f"min_by(page, {order}) FILTER (WHERE page IS NOT NULL)").alias("entry_page"),
            F.expr(f"max_by(page, {order}) FILTER (WHERE page IS NOT NULL)").alias("exit_page"),
        )
        .select("*", "first.*")
    )
    measured = (
        sessions.withColumn("session_id", F.md5(F.concat("user_id", F.lit("\x1f"), "event_id")))
        .withColumn("duration_s", (F.unix_micros("ended_at") - F.unix_micros("started_at")) / 1_000_000)
        .withColumn("converted", F.col("purchase_count") > 0)
        .withColumn("engaged", F.expr("duration_s > 10 OR page_view_count >= 2 OR converted"))
        .withColumn(
            "bounced",
            F.expr("CASE WHEN page_view_count > 0 THEN page_view_count = 1 AND NOT engaged AND refund_count = 0 END"),
        )
        .withColumn("engaged", F.expr("CASE WHEN engaged OR page_view_count > 0 OR duration_s > 0 THEN engaged END"))
        .withColumn("cart_abandoned", F.expr("CASE WHEN cart_add_count > 0 THEN NOT converted END"))
        .withColumn("revenue", F.col("revenue_micros") / 1_000_000)
        .drop("number", "first", "event_id", "revenue_micros", "refund_count")
    )
    measured.write.option("compression", "zstd").parquet(str(out / "sessions"))
