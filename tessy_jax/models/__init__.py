"""Decoder-only transformers as Flax NNX modules, read from and written to Hugging Face folders."""
