"""What a run would need: chips, compiled programs, cost."""
