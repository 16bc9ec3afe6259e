"""A task in, a receipt out: what runs in every process of a run.

Imports every room below but `cluster`. Start with `tasks`, then `worker`.
"""
