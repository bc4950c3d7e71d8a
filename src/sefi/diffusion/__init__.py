"""Images: a stock diffusers pipeline driven by a conditioner."""
