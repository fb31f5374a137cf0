"""From Megatron's parameters to Hugging Face tensors and back.

`layout.py` has the nouns and the rules that the families share; `llama.py`, `qwen2.py`, `qwen3.py` and `opt.py` list
the tensors of one family each; `plan.py` turns a family, a model's shape and a rank's place into the parts that this
rank holds (all of this without a tensor); `copy.py` moves the bytes.
"""
