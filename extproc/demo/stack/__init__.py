"""Processes of the demo: Envoy, the router and the backends."""
