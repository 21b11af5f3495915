"""One logical run: its attempts, where it stands, when it saves, and which saves are sound."""
