"""icl_jax's step as `icl-jax train` compiles it: every position's loss comes out of every step."""

import os

import numpy as np

from icl_jax import process
from icl_jax.cli.train import default_cpu_devices
from icl_jax.config import Config


class Ours:
    """On all devices; one step in flight on CPU, as in the training loop."""

    def __init__(self, config: Config, device: str) -> None:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the others share the GPU
        process.configure_jax(default_cpu_devices(config, process.cpu_count()))
        import jax

        from icl_jax.train.parallel import ParallelStep

        devices = jax.devices("cpu" if device == "cpu" else "gpu")
        self._parallel = ParallelStep(config, devices)
        self._state = self._parallel.init_state()
        self._waits = device == "cpu"

    def run(self, batches: list[np.ndarray]) -> list[float]:
        losses = []
        for rows in batches:
            self._state, metrics = self._parallel.step(self._state, self._parallel.put_rows(rows))
            if self._waits:
                metrics.loss_T.block_until_ready()
            losses.append(metrics.loss_T)
        return [float(np.asarray(loss_T).mean()) for loss_T in losses]

    def release(self) -> None:
        pass
