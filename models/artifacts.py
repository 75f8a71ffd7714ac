"""Artifacts: the files of runs and models, found by id in the folder beside MLflow's database.

MLflow itself would write down where they were first and look there ever after: a moved store would lose them, and a
copy would read, and write, those of its original. So it is told an address without a place, and the place is found
here. Its server, started with `--artifacts-destination`, finds the same files.
"""

import re
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from features.lake import MovedError

ADDRESS = "mlflow-artifacts:/"
MODEL = re.compile(r"/models/(m-[0-9a-f]{32})/artifacts$")
PLACED = "SELECT 1 FROM experiments WHERE artifact_location LIKE 'file:%/artifacts'"
FORGET_PLACES = f"""
BEGIN IMMEDIATE;
UPDATE experiments SET artifact_location = '{ADDRESS}' WHERE artifact_location LIKE 'file:%/artifacts';
UPDATE runs SET artifact_uri = '{ADDRESS}' || run_uuid || '/artifacts'
    WHERE artifact_uri LIKE 'file:%/artifacts/' || run_uuid || '/artifacts';
UPDATE logged_models SET artifact_location = '{ADDRESS}models/' || model_id || '/artifacts'
    WHERE artifact_location LIKE 'file:%/artifacts/models/' || model_id || '/artifacts';
UPDATE model_versions
    SET source = '{ADDRESS}' || substr(source, -51), storage_location = '{ADDRESS}' || substr(source, -51)
    WHERE source LIKE 'file:%' AND substr(source, -62) LIKE '/artifacts/models/m-%/artifacts';
COMMIT;
"""
"""Of a model, its last 51 characters are from `models` on."""


class Artifacts:
    """The folder `artifacts` in that of MLflow's store."""

    def __init__(self, mlruns: Path) -> None:
        self.folder = mlruns.absolute() / "artifacts"

    def of_run(self, run_id: str, file: str) -> Path:
        """Return where a run has a file, or would."""
        return self.folder / run_id / "artifacts" / file

    def of_model(self, model_id: str) -> Path:
        """Return the folder of a model's files."""
        return self.folder / "models" / model_id / "artifacts"

    def of_source(self, source: str) -> Path | None:
        """Return the folder of a model's files, from what a registered version says of it; None if it is no such."""
        found = MODEL.search(source)
        return self.of_model(found[1]) if found else None

    def prepare(self, path: Path) -> Path:
        """Have the folder there that something is about to be written in.

        Raises MovedError where the store is no longer there: nothing is written where it was.
        """
        if not self.folder.parent.is_dir():
            raise MovedError(self.folder.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def forget_places(database: Path) -> None:
    """Have a store of 0.1.0, which said where artifacts were, say no more of it.

    Only MLflow's own pages ask it, so a store that cannot be written now stays as it is.
    """
    if not database.exists():
        return
    with suppress(sqlite3.Error), closing(sqlite3.connect(database, timeout=0)) as store:
        if store.execute(PLACED).fetchone():
            store.executescript(FORGET_PLACES)
