"""What earlier work held does not count for what comes after it."""

from types import SimpleNamespace

import pytest
import torch

from sefi.benchmark.identities import SELF, read_peak_megabytes, reset_peak


@pytest.mark.slow
@pytest.mark.skipif(not (SELF / "clear_refs").exists(), reason="Linux tells the peak of a process")
def test_memory_of_earlier_work_is_forgotten():
    cpu = SimpleNamespace(device=torch.device("cpu"))
    reset_peak(cpu)
    # Pieces that are small enough for the C library to keep when they are freed.
    held = [bytearray(b"x") * 100_000 for _ in range(3000)]
    above = bytearray(b"x") * 100_000  # stays, so that the library cannot shorten its heap by itself
    high = read_peak_megabytes(cpu)
    del held
    reset_peak(cpu)
    low = read_peak_megabytes(cpu)
    assert len(above) == 100_000
    assert high is not None
    assert low is not None
    assert high - low > 200
