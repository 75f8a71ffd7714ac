"""What mends a lake, tried: each file that a shop's tables have is broken, and what is said then is done."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import stages
from deltalake import DeltaTable
from stages import AS_OF, STEPS, attempt, bring_late_events, make_shop, restore, tables_of

from features.damage import MADE_BY, DamagedError, find_damage
from features.lake import Lake
from publish import versions

pytestmark = pytest.mark.slow

COMMANDS = {"ingest": stages.ingest, "sessions": stages.sessions, "snapshot": stages.snapshot, "score": stages.score}
MENDED = [name for name, command in MADE_BY.items() if command in COMMANDS and name != "session_aliases"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Run a shop until it has published; return it, and a copy."""
    folder, kept = (tmp_path_factory.mktemp(name) / "shop" for name in ("made", "kept"))
    make_shop(folder)
    bring_late_events(folder)
    for step in STEPS[:6]:
        assert attempt(step, folder)[0] == "done"
    kept.mkdir()
    restore(folder, kept)
    return folder, kept


@pytest.fixture
def folder(made: tuple[Path, Path]) -> Path:
    restore(made[1], made[0])
    return made[0]


def break_file(table: Path) -> None:
    path = max(pa.table(DeltaTable(str(table)).get_add_actions())["path"].to_pylist())
    (table / path).write_bytes((table / path).read_bytes()[:100])


def break_log(table: Path) -> None:
    (table / "_delta_log" / f"{0:020}.json").write_text("{")


@pytest.mark.parametrize("name", MENDED)
@pytest.mark.parametrize("damage", [break_file, break_log])
def test_what_is_said_to_mend_a_table_does(folder: Path, name: str, damage: Callable[[Path], None]) -> None:
    before = tables_of(folder)
    damage(folder / "lake" / name)
    said = find_damage(folder / "lake", folder / "habitus.toml", in_content=True)
    assert isinstance(said, DamagedError)
    if asked := re.search(r"or move (.+) elsewhere", str(said)):
        for moved in asked[1].split(" and "):
            shutil.move(moved, folder / f"{Path(moved).name} of before")
    command = re.search(r"`habitus (\w+) ", str(said))
    assert command is not None
    COMMANDS[command[1]](str(folder / "habitus.toml"))
    assert find_damage(folder / "lake", "", in_content=True) is None
    for then in COMMANDS.values():
        then(str(folder / "habitus.toml"))
    stages.publish(str(folder / "habitus.toml"))
    assert tables_of(folder) == before
    with Lake(folder / "lake") as lake:
        present = versions.present(lake)
    assert present is not None
    assert (present.version, present.as_of) == (1, AS_OF)
