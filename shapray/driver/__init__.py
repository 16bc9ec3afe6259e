"""A job's stages: its inputs checked, its tasks handed out, its tables and reports published.

Imports every room below. Start with `stages.run`, which is the whole run on one screen; `plan` and
`tasks` say what is to be done, `record` and `resume` what has been.
"""
