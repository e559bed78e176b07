"""Many models at once in PyTorch: parameters with an axis of members, `torch.func.vmap` over the model, one AdamW."""

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.contenders.pytorch import Model, adamw, learning_rate
from icl_jax.config import Config


class PyTorchMembers:
    """`params`: the members' own, an axis in front of each; the loss of every position of every member is kept."""

    def __init__(self, config: Config, device: str, params: dict[str, np.ndarray], *, is_compiled: bool) -> None:
        self._config, self._device, self._n_done = config, torch.device(device), 0
        n_members = len(params["W_E"])
        self._model = Model(config.model)
        stacked: dict[str, list[torch.Tensor]] = {}
        for member in range(n_members):
            self._model.load({name: value[member] for name, value in params.items()})
            for name, value in self._model.named_parameters():
                stacked.setdefault(name, []).append(value.detach().clone())
        self._model.to(self._device)
        self._params = {name: torch.stack(values).to(self._device).requires_grad_() for name, values in stacked.items()}
        self._optimizer = adamw(list(self._params.values()), config, 3)
        self._forward_backward = torch.compile(self._step_fn) if is_compiled else self._step_fn

    def _step_fn(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum of the members' mean losses, whose gradient has each one's own; loss [member, T]."""

        def one(params: dict[str, torch.Tensor]) -> torch.Tensor:
            logits = torch.func.functional_call(self._model, params, (rows[:, :-1],))
            loss = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none")
            return loss.view(rows.shape[0], -1).mean(0)

        # PyTorch maps its fast attention over members on a GPU alone.
        kernels = [SDPBackend.MATH] + ([SDPBackend.EFFICIENT_ATTENTION] if self._device.type == "cuda" else [])
        with sdpa_kernel(kernels):
            loss_MT = torch.func.vmap(one)(self._params)
        return loss_MT.mean(1).sum(), loss_MT.detach()

    def _clip(self) -> None:
        grads = [p.grad for p in self._params.values() if p.grad is not None]
        norm_M = torch.stack([grad.flatten(1).norm(dim=1) for grad in grads]).norm(dim=0)
        scale_M = (self._config.optimizer.clip_norm / norm_M.clamp_min(1e-30)).clamp_max(1.0)
        for grad in grads:
            grad.mul_(scale_M.view(-1, *[1] * (grad.ndim - 1)))

    def run(self, batches: list[np.ndarray]) -> np.ndarray:
        """One step per batch of rows int32 [B, T + 1]; loss [step, member, T] in nats."""
        recorded = []
        for rows in batches:
            for group in self._optimizer.param_groups:
                group["lr"] = learning_rate(self._config, self._n_done)
            self._n_done += 1
            total, loss_MT = self._forward_backward(torch.from_numpy(rows).to(self._device, torch.int64))
            total.backward()
            if self._config.optimizer.clip_norm > 0:
                self._clip()
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
            recorded.append(loss_MT)
        return np.stack([loss_MT.cpu().numpy() for loss_MT in recorded])
