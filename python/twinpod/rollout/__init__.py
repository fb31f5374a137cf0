"""The rollout worker: pulls work from the master, drives the engine beside it, gives segments back.

`repeat`, `plan`: pure. `ports`: what the worker needs of a master, an engine and a clock. `worker`: the thin half that
acts. `engine_file`: where the worker learns which engine serves. `master_client`, `__main__`: wiring.
"""
