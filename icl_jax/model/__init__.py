"""Pure forward pass, loss and head scores over a dict of parameters."""
