"""The papers' measurements, one file each: pure functions of arrays, and the table of all of them."""
