"""Everything around the inference engine: its client, the standby that forks it, and what runs inside it.

`sglang_engine` (server arguments, HTTP client) is torch-free and used from outside. `standby` and `forking` make engine
processes. Inside SGLang's processes run `weight_loader` with `weight_parts`, `plugins`, and on machines without an
accelerator `platform_cpu`,
`attention_cpu` and `kv_pool_cpu`. This file imports nothing, so that the client stays light.
"""
