"""From request to pool: text features, categories, estimators, allowance, policy.

Pure: no I/O, no clock, no randomness. ``extproc.library`` is its public API.
"""
