"""Wraps many models of timm, transformers and this package, and records what became of each."""
