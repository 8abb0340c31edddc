"""Two sweeps side by side: what differs, how surely, and whether it is of the same things; reads saved results only."""
