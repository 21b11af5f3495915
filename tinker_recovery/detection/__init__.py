"""Detection: the Monitor polls the service for the status of runs, and checks them for silence.

The poll interval is a setting (its default is in ``policy``); ``plan`` decides what to ask and
when, ``poller`` asks, ``monitor`` is the child of the supervision tree. It reports what it sees to
the runs and never recovers; it never imports ``recovery`` or ``run``.
"""
