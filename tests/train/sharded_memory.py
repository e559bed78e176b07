"""`python -m tests.train.sharded_memory PORT N ID FOLDER`: process ID of N saves a sharded state and loads it again.

Prints, as JSON, the bytes of its shards and of the largest array, and by how many its memory grew at most in either.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from icl_jax.config import Config, ModelConfig, TrainConfig
from icl_jax.rundir import RunDir
from icl_jax.train.loop import load_state
from icl_jax.train.parallel import ParallelStep
from icl_jax.train.processes import all_or_none, is_first
from icl_jax.train.state_arrays import state_to_arrays

N_DEVICES = 8


def _status(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def _grown_from() -> int:
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    return _status("VmRSS")


def save_and_load(config: Config, path: str) -> dict[str, int]:
    all_or_none("cannot make the run", lambda: is_first() and RunDir.create(path, config, corpus_sha256=""))
    run, parallel = RunDir.open(path), ParallelStep(config, jax.devices())
    state = parallel.init_state()
    arrays = jax.block_until_ready(state_to_arrays(state))
    before = _grown_from()
    run.begin_state(0, arrays, parallel.checksums(arrays))()
    saving = _status("VmHWM") - before
    own = sum(s.data.nbytes for array in arrays.values() for s in array.addressable_shards if s.replica_id == 0)
    before = _grown_from()
    loaded = load_state(run, 0, parallel)
    loading = _status("VmHWM") - before
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(loaded), strict=True):
        assert old.sharding == new.sharding
        for a, b in zip(old.addressable_shards, new.addressable_shards, strict=True):
            np.testing.assert_array_equal(a.data, b.data)
    largest = max(array.nbytes for array in arrays.values())
    return {"own": own, "largest": largest, "saving": saving, "loading": loading}


def main() -> None:
    port, n, index, folder = sys.argv[1:]
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", N_DEVICES // int(n))
    if int(n) > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", int(n), int(index))
    model = ModelConfig(n_layers=1, d_model=256, n_heads=4, n_ctx=16, vocab_size=256)
    config = Config(model=model, train=TrainConfig(parallel="mesh", fsdp=N_DEVICES, batch_size=N_DEVICES))
    save_and_load(config, f"{folder}/small")  # what libraries take the first time
    large = replace(config, model=replace(model, vocab_size=65536))
    print(json.dumps(save_and_load(large, f"{folder}/large")))


if __name__ == "__main__":
    main()
