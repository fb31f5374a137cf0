"""Twinpod: reinforcement learning of language models on Kubernetes, training and inference on the same GPUs in turn."""

__version__ = "0.1.0"
