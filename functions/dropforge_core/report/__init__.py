"""The page of a run: one self-contained HTML document that is read without scripts or a network."""

from dropforge_core.report.documents import RunDocuments, collect
from dropforge_core.report.page import render

__all__ = ("RunDocuments", "collect", "render")
