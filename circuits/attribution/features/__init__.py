"""Graphs of features: which SAE or transcoder features, at which positions, make which others and the answer."""
