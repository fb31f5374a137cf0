"""Weights on the move: composing a version from its shards, its manifest, its proof. Fetching from peers comes by a
carrier.

The bytes themselves lie in arenas (`twinpod.arena`); here are the words about them. A version is believed only when
its parts tile every tensor exactly once and every shard hashes to its published digest.
"""
