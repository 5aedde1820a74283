"""Worker processes: supervision and merged reports."""
