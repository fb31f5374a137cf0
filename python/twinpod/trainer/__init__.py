"""The trainer room: Megatron-core ranks, the loss, the iteration and the converter.

Read `loop.py` first: it is the life of a rank. `step.py` is one iteration, `loss.py` the objective
(paper.md section 5), `megatron.py` the model, `convert/` the way from Megatron's parameters to
Hugging Face tensors and back. Everything that a machine without a GPU needs is in `platform_cpu.py`.
"""
