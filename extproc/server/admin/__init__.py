"""The admin port, which serves the live page, status, metrics and JSON API."""
