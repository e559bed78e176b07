"""Families of models, one declaration each: what their config.json says, where their tensors lie, what folds."""
