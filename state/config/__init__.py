"""Files that users edit: read whatever they are, with a copy of what was valid last."""
