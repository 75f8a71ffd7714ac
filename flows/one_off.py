"""What Prefect is told where a command runs without a server of its own; Prefect reads it when it is imported."""

from pathlib import Path

ONE_OFF_SETTINGS = {
    "PREFECT_HOME": str(Path.cwd() / ".prefect"),
    # Prefect's temporary server would print tracebacks of its own telemetry.
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # a busy machine takes more than its 20
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",  # of its threads, when a signal ends them
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PREFECT_FLOWS": '{"heartbeat_frequency": null}',  # ending a heartbeat takes a second for each stage
}
