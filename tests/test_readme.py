"""What the README shows works as it is shown."""

import doctest
import re
import tomllib
from pathlib import Path

import pytest
from shops import habitus

from flows.configuration import Configuration

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands(program: str) -> set[str]:
    text = "\n".join(blocks("console"))
    return set(re.findall(rf"^{program} ([a-z]+)", text, flags=re.MULTILINE))


def test_the_configuration_is_valid() -> None:
    [text] = blocks("toml")

    assert Configuration.model_validate(tomllib.loads(text)).name == "shop"


def test_the_configuration_shows_every_section() -> None:
    [text] = blocks("toml")

    assert tomllib.loads(text).keys() == Configuration.model_fields.keys()


def test_the_python_code_gives_what_it_says() -> None:
    failed, attempted = doctest.testfile(str(ROOT / "README.md"), module_relative=False)

    assert attempted > 0
    assert failed == 0


def test_the_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))

    assert {"demo", "test", "serve"} <= commands("make") <= targets


def test_the_commands_exist() -> None:
    assert commands("habitus") == {"run", "preview"}
    for command in re.findall(r"`habitus ([a-z |\n]+) CONFIG`", README)[0].split("|"):
        assert habitus(command.strip(), "--help").exit_code == 0


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"\b(?:examples|notebooks|docs|features|tests)/[\w/.-]+\w", README)))
)
def test_the_files_it_names_exist(path: str) -> None:
    assert (ROOT / path).exists()
