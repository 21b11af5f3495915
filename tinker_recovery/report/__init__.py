"""A run's report: from the journal's records to one self-contained page of HTML.

Called by ``cli/``. Nothing here reads or writes a file: the data come from
:mod:`tinker_recovery.journal.reading`. Never imports a room that trains, recovers or deletes.
:mod:`~tinker_recovery.report.html` escapes every text and removes secrets from it.
"""

from tinker_recovery.report.figures import ReportFigures, figures_of
from tinker_recovery.report.page import render
from tinker_recovery.report.words import duration, event_in_words, plain

__all__ = [
    "ReportFigures",
    "duration",
    "event_in_words",
    "figures_of",
    "plain",
    "render",
]
