"""The sub-commands of ``extproc``, a module each: arguments, then work."""
