"""One logical run: its attempts, where it stands, when it saves, and which saves are sound.

- ``attempt``, ``view``, ``options``: what a user holds or gives: :class:`Attempt`, :class:`Run`,
  :class:`StartOptions`
- ``scope``, ``client_hooks``, ``judging``, ``monitored``: where a fault is detected and declared
- ``supervised``: the run itself, which reports faults and gets recovered clients
- ``register``: the runs of a Supervisor, each opened once
- ``open``, ``journaling``: taking a run over from an earlier process, and writing for a later one
- ``claiming``: the claim at the service that keeps a named run to one process
- ``saver``: when an attempt saves; ``rollback_detector``: whether the service lost weights
- ``blocking``, ``background``, ``mailbox``, ``signals``: threads, tasks, and the signals that stop
  a process

Called by the Supervisor alone. It never imports ``retention`` or ``detection``.
"""
