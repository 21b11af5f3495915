"""Watched runs: trained elsewhere, known by their status alone.

``watch`` is what a user holds and what the Monitor polls; ``restore`` is the order in which such a
run's checkpoints are tried. Everything else of a recovery is the same as for a supervised
run. Called by the Supervisor; never imports ``run``.
"""
