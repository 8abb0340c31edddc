"""Activations of a model: streams to train on, the held-out pass, captures and stores on disk, and the scoring of prompts."""
