"""The admin port: page, status, metrics, JSON API."""
