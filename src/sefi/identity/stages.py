"""Timestep to stage."""

from torch import Tensor


def get_stage(timestep: int, stages: int, num_train_timesteps: int) -> int:
    """`floor(stages * t / T)`, clipped: stage 0 is the least noisy.

    Differs: the paper counts its stages from the noisiest, P_1 = stage `stages - 1`.

    >>> [get_stage(t, 5, 1000) for t in (0, 199, 200, 999)]
    [0, 0, 1, 4]
    """
    return min(stages - 1, stages * int(timestep) // num_train_timesteps)


def get_stages(timesteps: Tensor, stages: int, num_train_timesteps: int) -> Tensor:
    """`get_stage` for timesteps `[batch]`, whole numbers."""
    return (stages * timesteps // num_train_timesteps).clamp(max=stages - 1)
