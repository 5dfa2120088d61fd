"""Files: atomic writing, formats of vectors and tensors, and faults reported with their place."""
