"""The embedded vision-language model: a small Gemma 3 that the project trains on drawn scenes with two planted biases."""
