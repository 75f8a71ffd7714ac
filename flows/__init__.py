"""When things happen, in what order, with which retries."""

import os

# Read when Prefect is imported, which is later than this in every entrypoint. Its temporary server would print
# tracebacks of its own telemetry.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "habitus")
