"""What the pages for people that a training leaves behind have in common."""

from collections.abc import Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --ink: #22303c; --pale: #5f6f7c; --grid: #dde3e8; --paper: #fff; --mark: #1b6ca8;
  --good: #2f7d4f; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaee; --pale: #9aa5b1; --grid: #3a4652; --paper: #151b21;
  --mark: #6db3e8; --good: #6fcf97; --bad: #ff8a80; } }
@media print { :root { --ink: #000; --pale: #444; --grid: #ccc; --paper: #fff; --mark: #1b6ca8; --good: #1d5c38;
  --bad: #8c1d18; } tr, svg { break-inside: avoid; } h2 { break-after: avoid; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin-bottom: 0; } h2 { font-size: 1.05rem; margin-top: 2rem; }
.definition { font-size: 1.1rem; } .held { color: var(--good); } .broken { color: var(--bad); font-weight: 600; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--grid); }
th { color: var(--pale); font-weight: 500; } .numbers { white-space: nowrap; }
.numbers th:nth-child(n + 3), .numbers td:nth-child(n + 3) { text-align: right; }
svg { width: 100%; height: auto; } svg text { fill: var(--pale); font-size: 12px; }
svg .grid { stroke: var(--grid); } svg .mark { stroke: var(--mark); stroke-width: 1.5; fill: var(--mark); }
svg .open { fill: var(--paper); }
"""


def page(title: str, body: Sequence[str]) -> str:
    """Return a page that needs nothing else: no network, light and dark, and fit to print. `body` is HTML."""
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
            f"<h1>{escape(title)}</h1>",
            *body,
            "</body></html>",
        ]
    )


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]], kind: str = "words") -> str:
    """Return a table of texts, which are escaped; of `kind` "numbers" all but two columns are aligned to the right."""

    def line(cells: tuple[str, ...], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"

    head, body = line(header, "th"), "\n".join(line(row, "td") for row in rows)
    return f'<div class="scroll"><table class="{kind}"><thead>{head}</thead><tbody>\n{body}\n</tbody></table></div>'
