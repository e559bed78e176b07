"""Where checkpoints come from: a folder or files on this machine, the hub."""
