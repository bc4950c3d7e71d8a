"""Captions of drawings, their words, tokenizer and text encoder."""
