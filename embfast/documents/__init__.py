"""Document vectors and documents with tags."""
