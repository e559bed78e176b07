"""Fast forms of attention and loss for one kind of device; each is tested against its reference."""
