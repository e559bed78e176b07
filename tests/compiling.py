"""How programs are compiled in tests, of which most run once: what is done soonest."""

import threading

from jax._src.interpreters import mlir

# Not optimised, in one thread, without the emitters of fused operations: a fifth of the time.
QUICK = (
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1 --xla_cpu_use_fusion_emitters=false"
)


def share_contexts() -> None:
    """Lower all programs of a thread in one context of MLIR: to make one takes as long as to trace a small program."""
    shared, make = threading.local(), mlir.make_ir_context

    def shared_context() -> object:
        if not hasattr(shared, "context"):
            shared.context = make()
        return shared.context

    mlir.make_ir_context = shared_context
