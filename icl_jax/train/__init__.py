"""The training step over devices, the loop around it, live probes and tracking."""
