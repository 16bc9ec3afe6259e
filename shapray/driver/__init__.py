"""A job's stages: its inputs checked, its tasks handed out, its tables and reports published.

Imports every room below. Start with `stages.run`, the whole run on one screen.

`inputs` opens what a job names; `plan` and `tasks` say what is to be done, `fingerprint` when two
runs are the same job, `resume` what is left to do, `record` (run.json) how far it is; `crew` has
the workers do it, `failures` stops where they cannot, and `progress` and `summary` show it, the cut
as a `picture`. `inspecting` looks at images before they are used. `scoring` has a network's units
scored, at `prices` that pilots choose, into `tables`, and `certainty` says how sure the scores are;
`cutting` makes smaller networks of the scores, of a size that `targets` may have to measure, with
what is `kept` of earlier cuts; `rounds` has one of them scored in between, `again` cuts once more.
`forecast` makes a `prediction` of a run (`cutting_costs` and `explaining_costs` what comes behind
the scores), `budget` chooses what fits a time, `preview` shows that.
"""
