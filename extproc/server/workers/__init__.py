"""Supervises worker processes and merges their reports."""
