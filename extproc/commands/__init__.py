"""The subcommands of ``extproc``, one per module: arguments, then work."""
