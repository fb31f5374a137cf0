"""The central master: conducts sampling, dispatch, rewards, replay, batches and iteration commits.

Read in this order: `conductor` (the circle), `dispatch` (pure: who generates what, and when a phase is over), `desk`
(the phase as it runs), `books` (what survives), `halves` and `board` (the others, by gRPC and etcd), `service` (what
others call), `__main__` (wiring).
"""
