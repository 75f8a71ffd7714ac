"""A whole project in a folder whose name has what addresses and patterns are made of; then moved, copied, put back."""

import gzip
import json
import shlex
import shutil
from pathlib import Path

import pytest
from messages import assert_documented
from shops import habitus, small_shop
from test_moving import digests

from features.lake import Lake
from flows.configuration import Configuration, ConfigurationError, load
from flows.publish import publish_version
from flows.report import write_report
from flows.score import assign_users
from flows.train import train_propensity, train_segments
from models.registry import Registry
from publish.assignments import ASSIGNMENTS

pytestmark = [pytest.mark.ci, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

HOSTILE = "a #1?%[x]*'\"{é} "
BESIDE = "a #1?%x*'\"{é} "
"""What HOSTILE would match, were it a pattern."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Configuration:
    """Run the whole job in a folder of that name, beside one that its name as a pattern would match."""
    folder = tmp_path_factory.mktemp("projects")
    config = small_shop(folder / HOSTILE)
    packed = config.with_name("events.csv.gz")
    config.with_name("events.csv").write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    config.write_text(config.read_text().replace("events.csv.gz", "events.csv"))
    shutil.copytree(config.parent, folder / BESIDE)
    done = habitus("run", str(config))
    assert done.exit_code == 0, done.stderr
    assert f"segments {shlex.quote(str(config))}\n" in done.stdout
    return load(config)


def score_publish_report(file: Path) -> None:
    assign_users.fn(str(file), None)
    publish_version.fn(str(file), None, None)
    write_report.fn(str(file), anew=True)


def test_a_folder_may_have_any_name(project: Configuration) -> None:
    names = {path.name for path in project.folder.iterdir()}
    assert names == {"events.csv", "habitus.toml", "lake", "mlruns", "published"}
    assert (project.mlruns / "mlflow.db").is_file()
    assert (project.published / "latest" / "assignments.csv").is_file()
    assert [*(project.published / "reports" / "latest").glob("report.html")]
    with Lake(project.lake) as lake:
        assert lake.row_count(ASSIGNMENTS) == 400
    assert {path.name for path in project.folder.parent.iterdir()} == {HOSTILE, BESIDE}
    assert {path.name for path in project.folder.with_name(BESIDE).iterdir()} == {"events.csv", "habitus.toml"}


def test_a_moved_project_goes_on_with_its_models_where_it_is(project: Configuration, tmp_path: Path) -> None:
    before = shutil.copytree(project.folder, tmp_path / "before", symlinks=True)
    after = load(before.rename(tmp_path / "after") / "habitus.toml")
    version = (after.published / "latest").resolve()
    score_publish_report(after.file)

    assert (after.published / "latest").resolve() == version  # the same models say the same
    assert [path.name for path in tmp_path.iterdir()] == ["after"]


def test_a_copy_is_trained_without_touching_its_original(project: Configuration, tmp_path: Path) -> None:
    original = digests(project.folder)
    copy = load(shutil.copytree(project.folder, tmp_path / "copy", symlinks=True) / "habitus.toml")
    copy.file.write_text(copy.file.read_text().replace("[training]\n", "[training]\nseed = 1\n"))
    trained = train_propensity.fn(str(copy.file), None, "churn")
    score_publish_report(copy.file)

    assert trained.version == 2
    assert Registry(copy.mlruns).load("ecom-churn", 2) is not None
    assert digests(project.folder) == original


def test_a_copy_that_shares_a_folder_of_models_with_its_original_is_not_trained(
    project: Configuration, tmp_path: Path
) -> None:
    original = digests(project.folder)
    copy = load(shutil.copytree(project.folder, tmp_path / "copy", symlinks=True) / "habitus.toml")
    copy.file.write_text(
        copy.file.read_text().replace('mlruns = "mlruns"', f"mlruns = {json.dumps(str(project.mlruns))}")
    )
    with pytest.raises(ConfigurationError) as told:
        train_segments.fn(str(copy.file), None)
    assert_documented("a copy whose models are those of its original", str(told.value), project.folder)
    assert digests(project.folder) == original


def test_a_lake_and_models_of_different_moments_are_told_apart(project: Configuration, tmp_path: Path) -> None:
    restored = load(shutil.copytree(project.folder, tmp_path / "shop", symlinks=True) / "habitus.toml")
    shutil.rmtree(restored.mlruns)
    with pytest.raises(ConfigurationError) as told:
        publish_version.fn(str(restored.file), None, None)
    assert_documented(
        "a lake and models that were put back as of different moments", str(told.value), tmp_path / "shop"
    )

    assign_users.fn(str(restored.file), None)
    with Lake(restored.lake) as lake:
        assert lake.read(ASSIGNMENTS).segments_version.count().to_pyarrow().as_py() == 0
