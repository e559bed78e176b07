"""Where rows of tokens come from, one file each."""
