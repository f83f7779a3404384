"""Directions of the input: neural anisotropy directions and their theory (Part I)."""
