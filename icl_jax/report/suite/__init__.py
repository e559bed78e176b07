"""Pictures and tables that compare the members of a suite."""
