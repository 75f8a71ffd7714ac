"""Draw docs/demo.svg: the closing screen of the main job on examples/ecom, as the README shows it."""

import io
import logging
import os
import re
from pathlib import Path

from rich.console import Console

from flows.one_off import ONE_OFF_SETTINGS

CONFIG = "examples/ecom/habitus.toml"


def main() -> None:
    """Run the job and record what it prints at the end."""
    os.environ |= ONE_OFF_SETTINGS  # read when Prefect is imported
    logging.getLogger("habitus").propagate = False
    from flows.run import run
    from flows.screen import show

    console = Console(record=True, width=110, file=io.StringIO(), force_terminal=True, highlight=False)
    show(run(CONFIG), CONFIG, ".venv/bin/habitus", console)
    picture = console.export_svg(title="make demo")
    # Rich names fonts on a server; the reader's own will do.
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)
    (Path(__file__).parent / "demo.svg").write_text(picture)


if __name__ == "__main__":
    main()
