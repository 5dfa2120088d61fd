"""What all models share: settings, first weights, sampling, the loop, progress, and model files."""
