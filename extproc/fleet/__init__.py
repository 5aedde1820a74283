"""Is it worth it: costs, hardware, workloads, vLLM's scheduler, simulation, sizing.

Pure: no I/O; randomness and time are parameters.
"""
