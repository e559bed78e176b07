"""Where a run is started, one file each."""
