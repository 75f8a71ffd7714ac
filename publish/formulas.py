"""Formulas: texts in CSV that a spreadsheet program would run, and how they are kept from it (OWASP, CSV injection).

A text that begins with = + - @, a tab or a line break gets an apostrophe in front, and so does = + - @ in its middle
where a program that takes another character for the separator would begin a cell. A text with an apostrophe there
already gets one more, so that to take one away again gives back exactly what there was.
"""

import re
from collections.abc import Sequence
from typing import Literal

import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.compute as pc

Formulas = Literal["escape", "keep"]
RUN = "=+\\-@＝＋－＠"
SKIPPED = r"['\x00]"
"""What may stand before it: apostrophes of an escape, and NUL, which LibreOffice reads over."""
BEGINNING = rf"^({SKIPPED}*[{RUN}\t\r\n])"
MIDDLE = rf"""([,;|"\t\r\n])({SKIPPED}*[{RUN}])"""
ESCAPES = ((MIDDLE, r"\1'\2"), (BEGINNING, r"'\1"))
"""What is replaced by what, one after the other; all that read it know RE2's syntax."""
UNESCAPES = (
    (rf"^'({SKIPPED}*[{RUN}\t\r\n])", r"\1"),
    (rf"""([,;|"\t\r\n])'({SKIPPED}*[{RUN}])""", r"\1\2"),
)


def escape(text: str) -> str:
    """Return a text as nothing runs it.

    >>> escape("=1+1"), escape("-1;+1"), escape("'=1"), escape("1-1")
    ("'=1+1", "'-1;'+1", "''=1", '1-1')
    """
    for pattern, escaped in ESCAPES:
        text = re.sub(pattern, escaped, text)
    return text


def unescape(text: str) -> str:
    """Return a text as it was before `escape`."""
    for pattern, plain in UNESCAPES:
        text = re.sub(pattern, plain, text)
    return text


def escape_column(texts: ir.StringValue) -> ir.StringValue:
    """Return texts of a query as `escape` does."""
    for pattern, escaped in ESCAPES:
        texts = texts.re_replace(pattern, escaped)
    return texts


def escape_array(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return texts of an Arrow table as `escape` does."""
    for pattern, escaped in ESCAPES:
        texts = pc.replace_substring_regex(texts, pattern, escaped)
    return texts


def unescape_columns(texts: ir.Table, names: Sequence[str]) -> ir.Table:
    """Return a table whose columns of texts are as they were before `escape`."""
    for pattern, plain in UNESCAPES:
        texts = texts.mutate(**{name: texts[name].re_replace(pattern, plain) for name in names})
    return texts
