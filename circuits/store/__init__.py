"""What an artifact is: kinds and their inputs, keys, contents, leases, the store."""
