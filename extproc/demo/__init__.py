"""The whole thing on one machine: Envoy, the server, two pools, real requests."""
