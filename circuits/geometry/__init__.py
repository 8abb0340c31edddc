"""The geometry of the residual stream under ablation: Gaussian entropies, output entropy, path lengths, and random controls."""
