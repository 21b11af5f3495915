"""A run in pictures: data in, one self-contained page of HTML out. Nothing is read or written here.

The data are those of :mod:`tinker_recovery.journal.reading`. What a person reads is escaped and
freed of secrets where it becomes HTML (:mod:`~tinker_recovery.report.html`), whoever wrote it.
"""

from tinker_recovery.report.figures import RunFigures, figures_of
from tinker_recovery.report.page import render
from tinker_recovery.report.words import duration, event_in_words, plain

__all__ = [
    "RunFigures",
    "duration",
    "event_in_words",
    "figures_of",
    "plain",
    "render",
]
