"""How programs are compiled in tests: not optimised, in one thread, by the emitters that are done soonest."""

QUICK = (
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1 --xla_cpu_use_fusion_emitters=false"
)
