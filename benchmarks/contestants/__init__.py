"""Who is measured: a module each, with `sessionize(lake, out)`, which writes SESSIONS to out/sessions.

A module may have `start()`, which is not measured. All read a lake's files of EVENTS, one for each day and in order of
event_id, and write all columns of SESSIONS in their units, compressed with zstd. No session of the data is as long as
24 hours, so none but Habitus looks for those.
"""

COUNTED = {
    "page_view_count": "page_view",
    "search_count": "search",
    "support_count": "support_view",
    "cart_add_count": "add_to_cart",
    "purchase_count": "purchase",
}
SUMMED = {**COUNTED, "refund_count": "refund"}
OF_FIRST = ("event_id", "source", "campaign", "device", "country")
READ = ("user_id", "occurred_at", "event_name", "page", "revenue", *OF_FIRST)
GAP_US = 30 * 60 * 1_000_000
EVENT_FILES = "events/day=*/*.parquet"
