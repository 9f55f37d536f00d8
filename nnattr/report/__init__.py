"""Answers as pages: one HTML file each, that opens without a network.

`report_page` writes any saved results, put together from the blocks of `html` and `sections`.
"""

from __future__ import annotations

from nnattr.report.results import Entry, report_page

__all__ = ["Entry", "report_page"]
