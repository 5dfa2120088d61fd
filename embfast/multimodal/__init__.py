"""Joint spaces of images and captions: the model, its data, its losses, and search."""
