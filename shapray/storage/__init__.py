"""A run's files: what each table holds, how it is published whole, and whose the directory is.

Imports the errors and texts only. Start with `schemas`, then `run_directory` and `shards`.
"""
