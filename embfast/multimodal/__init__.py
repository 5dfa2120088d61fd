"""Images and captions in one space: the model, its data, losses and searches."""
