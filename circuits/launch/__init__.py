"""From a config to elements that run: plans, backends, sweeps, and how they fare."""
