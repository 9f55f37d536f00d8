"""Answers as pages: one HTML file each, that opens without a network.

`report_page` writes any saved results, put together from the blocks of `html` and `sections`;
`scores` has what is said of attribution alone.
"""

from __future__ import annotations

from nnattr.report.entry import Entry
from nnattr.report.page import report_page

__all__ = ["Entry", "report_page"]
