"""Draw docs/demo.svg: the closing screen of the main job on examples/ecom, as the README shows it."""

import io
from pathlib import Path

from rich.console import Console

from flows.run import run
from flows.screen import show

CONFIG = "examples/ecom/habitus.toml"


def main() -> None:
    """Run the job and record what it prints at the end."""
    console = Console(record=True, width=110, file=io.StringIO(), force_terminal=True)
    show(run(CONFIG), CONFIG, console)
    console.save_svg(str(Path(__file__).parent / "demo.svg"), title="make demo")


if __name__ == "__main__":
    main()
