"""Jobs over workers that are killed and stopped: see ``_jobs.py``, and ``--help``."""

from _jobs import main

if __name__ == "__main__":
    main()
