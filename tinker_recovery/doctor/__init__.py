"""Whether a service gives the optimizer back: the three-way comparison, by experiment.

A restore "with optimizer" that leaves the moments at zero raises nothing and looks like any other;
only the next update is another one (tinker-feedback #126). So a short run goes on from one
checkpoint in three ways, each by the same single step: live, resumed with optimizer, resumed with
weights only. What they answer to a fixed batch afterwards tells which of the other two the one in
question equals. ``comparison`` judges, and is pure; ``examination`` asks the service.
"""

from tinker_recovery.doctor.comparison import Diagnosis, Finding, Observations, Stand, diagnose
from tinker_recovery.doctor.examination import ExamPlan, Report, examine
from tinker_recovery.doctor.once import OptimizerCheck

__all__ = [
    "Diagnosis",
    "ExamPlan",
    "Finding",
    "Observations",
    "OptimizerCheck",
    "Report",
    "Stand",
    "diagnose",
    "examine",
]
