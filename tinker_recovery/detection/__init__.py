"""The Monitor: polls statuses, plans polls, notices silence. It detects and never recovers."""
