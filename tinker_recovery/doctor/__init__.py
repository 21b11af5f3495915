"""Whether a service really restores the optimizer, found by experiment.

A restore "with optimizer" that leaves the moments at zero raises no error; only the next update
differs (tinker-feedback #126). So a short run is continued from one checkpoint in three ways, each
by the same single step: live, resumed with optimizer, resumed with weights only. The answers to a
fixed batch then show which of the other two the second one equals.

``comparison`` judges, and is pure; ``examination`` runs the experiment; ``once`` runs it in the
background, once for each service. ``trials`` tries what else a service does, ``fencing`` whether it
lets only one process train a run, and ``facts`` says what can be promised there. Called by ``cli/``
and the Supervisor; never imports ``run`` or ``retention``.
"""

from tinker_recovery.doctor.examination import ExamPlan, Report, examine
from tinker_recovery.doctor.facts import Fact
from tinker_recovery.doctor.once import OptimizerCheck
from tinker_recovery.doctor.trials import try_out

__all__ = ["ExamPlan", "Fact", "OptimizerCheck", "Report", "examine", "try_out"]
