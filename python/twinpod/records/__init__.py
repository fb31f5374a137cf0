"""The nouns that every room shares: frozen, slotted, keyword-only dataclasses without I/O.

`weights`: what moves from trainer to engine. `rollout`: prompts, groups, trajectories, segments, work.
`training`: what a training phase takes and gives. `life`: halves, phases, commands, statuses.
"""
