"""Answers as pages: one HTML file each, that opens without a network.

`report_page` writes any saved results, `demo_page` the demo; both are put together from `sections`.
"""

from __future__ import annotations

from nnattr.report.demo import demo_page
from nnattr.report.results import Part, report_page

__all__ = ["Part", "demo_page", "report_page"]
