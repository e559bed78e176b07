"""The papers' measurements, one file each: pure functions of arrays."""
