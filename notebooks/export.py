"""Run a notebook, and write what its cells show to one page that needs no network, and no marimo, to be read.

    python notebooks/export.py notebooks/explore.py examples/ecom/habitus.toml explore.html

`marimo export html` writes a page that fetches marimo's own program from a CDN, and is blank without one.
"""

import html
import importlib.util
import json
import re
import sys
from pathlib import Path

import marimo as mo
import pandas as pd
from matplotlib.figure import Figure

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif; }}
table {{ border-collapse: collapse; font-size: 14px; }} th, td {{ padding: .2rem .6rem; border: 1px solid #ddd; }}
section {{ margin: 1.5rem 0; overflow-x: auto; }} img, svg {{ max-width: 100%; }}
</style></head><body>
{body}
</body></html>
"""
FIGURE = re.compile(r"<marimo-mime-renderer\b[^>]* data-data='([^']*)'[^>]*></marimo-mime-renderer>")
CONTROL = re.compile(r"<(marimo-ui-element)\b.*?</\1>", re.DOTALL)
"""A slider or a menu, which does nothing without marimo."""


def export(notebook: Path, config: Path, page: Path) -> None:
    """Write the page of a notebook that is run on a configuration."""
    spec = importlib.util.spec_from_file_location(notebook.stem, notebook)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{notebook}: is no notebook")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pd.set_option("display.max_colwidth", None)
    mo.as_html(Figure())  # from here on marimo knows how to show one within others
    outputs, _ = module.app.run(defs={"config_file": str(config)})
    shown = [FIGURE.sub(_draw, CONTROL.sub("", mo.as_html(one).text)) for one in outputs if one is not None]
    body = "\n".join(f"<section>{text}</section>" for text in shown)
    page.write_text(PAGE.format(title=html.escape(notebook.stem), body=body), encoding="utf-8")


def _draw(figure: re.Match[str]) -> str:
    bundle = json.loads(json.loads(html.unescape(figure[1])))
    return f'<img alt="figure" src="{bundle["image/png"]}">'


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit("give a notebook, a configuration and the page to write")
    export(*map(Path, sys.argv[1:]))
