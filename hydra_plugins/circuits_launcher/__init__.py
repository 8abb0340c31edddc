"""Hydra's launcher and sweeper for this project (Hydra accepts plugins only from this namespace).

Both are thin: the sweeper expands the overrides of a sweep, the launcher hands the elements to ``circuits.launch.sweep``.
"""
