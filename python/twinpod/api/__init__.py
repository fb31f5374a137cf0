"""What a person writes and what every process reads: resource types, their rules, reserved names, the environment.

Nothing here does anything but read text and answer with records or with clear errors; no torch, no Kubernetes client.
Start at `types.py` (the nouns), then `load.py` (a manifest to a job) and `rules.py` (what fields demand of each other).
"""
