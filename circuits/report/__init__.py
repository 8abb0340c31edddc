"""Figures and the self-contained page of a sweep, from saved results only."""

from circuits.report.page import build
from circuits.report.types import ArtifactRef, Element, ReportInput

__all__ = ["ArtifactRef", "Element", "ReportInput", "build"]
