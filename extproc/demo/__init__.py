"""The whole stack on one machine: Envoy, the router, two pools and real requests."""
