"""From a fault to a new client, the steps of a recovery in their order.

::

    a failed call, a poll, silence, the canary     run, detection
      -> AttemptScope.declare_fault                run.scope
      -> SupervisedRun.report_fault: the incident  run.supervised
      -> FaultQueue.put, FaultQueue.take           queue
      -> Executor: wait for a slot, an attempt     executor, admission, budget
      -> Restore.restore                           restore
           CheckpointSelection.choose              selection, asking the inspector
           TinkerBackend.connect: a new session          service
           verify with the canary; if it is        checkpoint_state knows the answers
           other weights, reject and choose again
      -> hold_ready, on_recovery, hand_over        the hand-over
      -> Attempt n + 1                             run

A run that another process left begins at ``resume`` (the journal knows it) or ``discovery`` (only
the service does), and goes the same way from its first fault, ``process_lost``. ``dry_run`` and
``manual`` restore without a run under way.

The order in which checkpoints are tried is in ``checkpoints.selection``, segment by segment in
``selection``; backoff, retries and the
texts of a run given up are in ``executor``. Called by the rooms above; never imports ``run``.
"""
