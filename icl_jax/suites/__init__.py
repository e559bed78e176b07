"""Many runs as one: suites, sweeps, and the jobs that they are."""
