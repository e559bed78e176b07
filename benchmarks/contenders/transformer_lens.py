"""TransformerLens's HookedTransformer, trained as its own `train` function does: its loss, AdamW, clipping."""

import warnings

import numpy as np
import torch

from benchmarks.contenders.pytorch import initial_params
from icl_jax import process
from icl_jax.config import Config
from icl_jax.export.transformer_lens import hooked_config, hooked_state_dict


class TransformerLens:
    """Its loss is that of all tokens of a row but the first, so it predicts one token a row less than the others."""

    def __init__(self, config: Config, device: str, per_position: bool) -> None:
        torch.set_num_threads(process.cpu_count())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from transformer_lens import HookedTransformer, HookedTransformerConfig

            self._model = HookedTransformer(HookedTransformerConfig(**hooked_config(config.model), device=device))
        state = hooked_state_dict(initial_params(config), config.model)
        self._model.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()}, strict=False)
        self._config, self._device, self._per_position = config, torch.device(device), per_position
        opt = config.optimizer
        self._optimizer = torch.optim.AdamW(
            self._model.parameters(), lr=opt.lr, betas=(opt.b1, opt.b2), eps=opt.eps, weight_decay=opt.weight_decay
        )

    def run(self, batches: list[np.ndarray]) -> list[float]:
        recorded = []
        is_half = self._config.model.compute_dtype == "bfloat16"
        for rows in batches:
            tokens = torch.from_numpy(rows[:, :-1]).to(self._device, torch.int64)
            with torch.autocast(self._device.type, torch.bfloat16, enabled=is_half):
                loss = self._model(tokens, return_type="loss", loss_per_token=self._per_position)
            recorded.append(loss.detach().mean(0))
            loss.mean().backward()
            if self._config.optimizer.clip_norm > 0:
                torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._config.optimizer.clip_norm)
            self._optimizer.step()
            self._optimizer.zero_grad()
        return [float(record.mean()) for record in recorded]

    def release(self) -> None:
        torch.cuda.empty_cache()
