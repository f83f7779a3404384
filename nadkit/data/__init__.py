"""What networks learn from: images, labels, D(v), and what is changed in them."""
