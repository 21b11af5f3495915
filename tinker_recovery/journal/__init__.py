"""What must survive this process: kept in a small database of the user's own."""

from tinker_recovery.journal.journal import Journal, Notes, default_path

__all__ = ["Journal", "Notes", "default_path"]
