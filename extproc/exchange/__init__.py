"""One HTTP exchange as ext_proc sees it: events in, replies and observations out.

Pure: no I/O, no clock, no randomness.
"""
