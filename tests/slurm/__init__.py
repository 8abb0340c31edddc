"""A real Slurm on one machine, for tests of launching: see README.md."""
