"""All surgery on the denoiser: cross-attention whose keys and values read different texts."""
