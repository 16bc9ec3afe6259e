"""Tasks on processes: handed out, retried, counted.

Imports `config`, `errors`, `credentials` and `text`. Knows no network and no Shapley value: a task
is anything with a cost. Start with `pool`, what the stages see, then `start.open_pool`.

`ray_pool` is the one on Ray: it replaces workers that die and gives up when too many do; `connect`
finds the cluster or starts one; `nodes` and `needs` say what fits on it; `backlog` orders the
tasks; `host` holds a worker in its process; `attempt` makes words of what goes wrong there.
`news` is how workers say how far a task is. `local_pool` is one worker in this process. `metrics`
feeds dashboards.
"""
