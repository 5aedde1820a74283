"""Storing and sharing the learned state between processes and machines."""
