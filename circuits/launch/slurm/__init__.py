"""Slurm: one array job per sweep and resource request, submitted so that a client that dies leaves no orphan and no double."""
