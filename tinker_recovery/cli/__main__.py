"""``python -m tinker_recovery.cli``: the command, where its script is not on the PATH."""

from tinker_recovery.cli import main

if __name__ == "__main__":
    main(prog_name="tinker-recovery")
