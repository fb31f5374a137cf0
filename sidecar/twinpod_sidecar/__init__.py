"""The checkpoint-engine: the first process of both containers of a hybrid pod. It owns its engine's life and moves
weights.

`machine` and `relay` decide (pure), `inference` and `training` act, `service` answers the master, `children` owns
processes. No torch, no SGLang, no Megatron is imported here: engines are started by module name.
"""
