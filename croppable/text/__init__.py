"""Croppable text encoders: stock Hugging Face models of which any width is a plain model."""
