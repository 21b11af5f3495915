"""Export: from a checkpoint to a model that others can load, as a folder or on a hub.

``adapter`` reads what the service exports and makes it what PEFT expects; ``formats``, ``tensors``
and ``gguf_file`` write it; ``manifest`` says what a folder holds; ``exporter`` goes from a path to
a folder; ``hub`` and ``card`` publish a folder; ``publisher`` does all that in the background while
a run trains. What is to be published next is decided in :mod:`tinker_recovery.checkpoints`. Called
by the Supervisor and the command line; never imports ``run``.
"""
