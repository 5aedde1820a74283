"""Fleet planning: cost, hardware, workloads, vLLM's scheduler, simulation, sizing.

Pure: no I/O; randomness and time are parameters.
"""
