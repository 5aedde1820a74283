"""Stores the learned state and shares it between processes and machines."""
