"""Retention: the background worker that keeps, deletes, renews and verifies checkpoints.

``loop`` is the worker, a child of the supervision tree; ``collector`` does the work for one run;
``verifier`` looks deeper than a recovery does, down to the bytes. When it collects is in ``loop``,
how fast it deletes is a setting (``max_deletes_per_s``). What to keep, and when a failed deletion
is tried again, is decided in :mod:`tinker_recovery.checkpoints`. Called by the Supervisor and the
command line; never imports ``run``.
"""
