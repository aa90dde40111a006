"""Derivatives of training: through many steps, of each sample, and what they say about the batch size."""

from purerun.derivatives.noise import Noise, noise_scale
from purerun.derivatives.objective import loss_at
from purerun.derivatives.samples import per_sample
from purerun.derivatives.unroll import unroll

__all__ = ["Noise", "loss_at", "noise_scale", "per_sample", "unroll"]
