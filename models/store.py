"""The store: what is looked at in MLflow's database before MLflow is, which takes an empty one for a new one."""

from pathlib import Path

HEADER = b"SQLite format 3\0"
MEND = "put it back from a backup, or move mlruns elsewhere and run `habitus train`, which begins anew"
"""What mends the store. An earlier version of a model cannot be trained again: it is of the past."""


class StoreError(Exception):
    """Name a file of MLflow's store that is missing or broken, and what mends it."""


def check_store(mlruns: Path) -> None:
    """Look for a database that is missing, empty, cut off or another file.

    Raises StoreError. Where there are no artifacts nothing is lost: a process was killed as it began.
    """
    file = mlruns / "mlflow.db"
    if not (mlruns / "artifacts").exists():
        return
    if not file.is_file():
        raise StoreError(f"{file} is missing: {MEND}")
    with file.open("rb") as opened:
        header = opened.read(100)
    size_bytes = int.from_bytes(header[16:18], "big") * int.from_bytes(header[28:32], "big")
    # Beside a journal is what a killed process left, which SQLite takes back by itself.
    is_cut_off = file.stat().st_size < size_bytes and not file.with_name("mlflow.db-journal").exists()
    if not header.startswith(HEADER) or is_cut_off:
        raise StoreError(f"{file} is broken: {MEND}")
