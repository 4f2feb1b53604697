"""The job ``grading.quiz``: a submission's reading, or typed answers, marked against a standard."""

from .handler import build

__all__ = ["build"]
