"""Request to pool: text features, categories, estimators, output allowance, policy.

Pure: no I/O, no clock, no randomness. ``extproc.library`` is its public API.
"""
