"""Tasks on processes: handed out, retried, counted.

Imports `config` and the errors. Knows no network and no Shapley value: a task is anything with a
cost. Start with `pool`, what the stages see, then `start.open_pool` and `ray_pool`.
"""
