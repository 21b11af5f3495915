"""The background worker that keeps, deletes, renews and verifies checkpoints."""
