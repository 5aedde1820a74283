"""The admin port: page, status, metrics and JSON API."""
