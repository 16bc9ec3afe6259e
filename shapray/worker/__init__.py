"""A task in, a receipt out: what runs in every process of a run.

Imports every room below but `cluster`. Start with `tasks`, then `worker`; `in_memory` is the one
without files; `rows` makes a shard's table of what was estimated, `piloting` looks at a few images
before.

`survey` times the parts of a job before it runs, for `--plan` and `--budget`: `group_survey` those
of a group, with `stand_in` for its network and a `stopwatch`; `costs` says what follows from the
times.
"""
