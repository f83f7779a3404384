"""Directions of the activations: units, their ablation and their selectivity (Part II)."""
