"""The embedded language model: a small Qwen2 that the project trains itself, so that nothing needs a network."""
