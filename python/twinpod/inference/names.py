"""Names that both sides of the engine use: the torch-free client and the code inside SGLang's processes."""

__all__ = ["ATTENTION_BACKEND", "BROKEN_VERSION", "LOADER", "START_VARIABLE"]

LOADER = "twinpod.inference.weight_loader.load"
"""SGLang finds the weight loader by this, as server argument and as `load_format`."""

ATTENTION_BACKEND = "twinpod_cpu"
"""Our attention backend in SGLang's registry."""

START_VARIABLE = "TWINPOD_ENGINE_START"
"""How an engine was started: fork or spawn. SGLang starts its own children, so an argument cannot reach them."""

BROKEN_VERSION = "broken"
"""Weight version that SGLang reports after a load that failed: the weights are a mixture."""
