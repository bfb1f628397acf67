"""Images in requests: what they are, by their first bytes, and how one behind a link is brought in."""
