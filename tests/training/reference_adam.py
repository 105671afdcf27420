"""The reference's optimiser (spec 4.6), restated literally in float64 NumPy."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass
class ReferenceAdam:
    """fairseq's Adam with clipping and the polynomial schedule of power 1, over a list of arrays.

    Attributes:
      lr: peak learning rate.
      warmup: updates of warm-up.
      total: updates in all.
      betas: decays of the moments.
      eps: added to the root of the second moment.
      clip: largest norm of the gradient.
      lr_scales: of each array's learning rate.
      decays: of each array.
    """

    lr: float
    warmup: int
    total: int
    lr_scales: list[float]
    decays: list[float]
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    clip: float = 2.0

    def rate(self, num_updates: int) -> float:
        """The learning rate after so many updates."""
        if num_updates <= self.warmup:
            return self.lr * num_updates / self.warmup
        return self.lr * (1 - (num_updates - self.warmup) / (self.total - self.warmup))

    def run(self, params: list[np.ndarray], all_grads: list[list[np.ndarray]]) -> list[np.ndarray]:
        """The parameters after an update for each list of gradients."""
        beta1, beta2 = self.betas
        params = [p.astype(np.float64) for p in params]
        exp_avg = [np.zeros_like(p) for p in params]
        exp_avg_sq = [np.zeros_like(p) for p in params]
        for step, grads in enumerate(all_grads, 1):
            grads = [g.astype(np.float64) for g in grads]
            total_norm = np.sqrt(sum(np.sum(g * g) for g in grads))
            clip_coef = min(self.clip / (total_norm + 1e-6), 1.0)
            for i, grad in enumerate(grads):
                grad = grad * clip_coef
                lr = self.rate(step - 1) * self.lr_scales[i]
                exp_avg[i] = beta1 * exp_avg[i] + (1 - beta1) * grad
                exp_avg_sq[i] = beta2 * exp_avg_sq[i] + (1 - beta2) * grad * grad
                denom = np.sqrt(exp_avg_sq[i]) + self.eps
                step_size = lr * np.sqrt(1 - beta2**step) / (1 - beta1**step)
                params[i] = params[i] - self.decays[i] * lr * params[i]
                params[i] = params[i] - step_size * exp_avg[i] / denom
        return params
