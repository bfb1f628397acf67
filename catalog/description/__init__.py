"""Models that no file of the catalog describes: what they need, from config.json and the headers of their weights."""
