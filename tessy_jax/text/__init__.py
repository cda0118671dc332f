"""Text and token ids: tokenizers, chat templates, and bridges between vocabularies."""
