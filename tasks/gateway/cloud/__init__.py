"""The way to the cloud: asked by a tier's name alone, within a budget."""
