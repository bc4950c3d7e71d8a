"""Learn an identity: losses, one step, the loop."""
