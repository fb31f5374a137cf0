"""The central master: conducts sampling, dispatch, rewards, replay, batches and iteration commits.

Read in this order: `conductor` (the circle), `work_buffer` (pure: who generates what, and when a phase is over),
`dispatcher` (the phase as it runs), `weight_sync` (weights on their way), `books` (what survives), `halves` and
`registry` (the others, by gRPC and etcd), `service` (what others call), `__main__` (wiring).
"""
