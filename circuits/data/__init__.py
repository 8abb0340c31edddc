"""What models read: behaviours and their prompts, corpora, tokens, splits. Knows no model."""
