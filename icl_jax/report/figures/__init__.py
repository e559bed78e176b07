"""One file per figure: what it shows, what to look for, the paper's value, and the chart."""
