"""Runs trained elsewhere, known by their status alone."""
