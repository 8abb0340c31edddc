"""A run: its context, status, signals, log, provenance and W&B tracking. Imports no torch and no research code."""
