"""What a run IS: its context, its status and signals, its log and provenance, what W&B is told. No torch, no science."""
