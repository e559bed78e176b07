"""How checkpoints lie in files: names, shapes and arrays that are read when asked for, one file a format."""
