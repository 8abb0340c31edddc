"""One file for each method of scoring edges."""
