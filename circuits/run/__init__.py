"""What a run IS, with no science in it: overrides, kinds and keys, the store, launching, status, tracking, provenance.

Nothing here imports torch. Tasks are reached by their ``_target_`` string only.
"""
