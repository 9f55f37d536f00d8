"""Answers as pages: one HTML file each, that opens without a network.

`report_page` writes any saved results, put together from the blocks of `html` and `sections`.
"""

from __future__ import annotations

from nnattr.report.results import Part, report_page

__all__ = ["Part", "report_page"]
