"""Keeping and moving results: archives, what may be deleted, bundles to take home. No torch at import."""
