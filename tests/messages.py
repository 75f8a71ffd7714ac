"""The table of docs/messages.md, which tests compare with what Habitus really says."""

from pathlib import Path

TABLE = Path(__file__).parents[1] / "docs" / "messages.md"


def read_messages() -> dict[str, str]:
    """Read what is wrong, and what Habitus says then."""
    rows = [line.strip("| \n").split(" | ", 1) for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    return {case: message.replace("\\|", "|") for case, message in rows[1:]}


def assert_documented(case: str, message: str, folder: Path | None = None) -> None:
    """Fail unless the table has that case with that message, with paths relative to a folder."""
    if folder is not None:
        message = message.replace(f"{folder}/", "").replace(str(folder), ".")
    assert read_messages().get(case) == " ".join(message.split()), f"| {case} | {message} |"
