"""How large the images of a request may be, and what they cost.

It imports nothing: engine processes, whose environment may have no mlxq, load this file by its path.
"""

MOST = 64
"""Images of one request."""
MOST_PIXELS = 50_000_000
"""Of one image as it comes: the photos of a phone have 48 million."""
IMAGE_PIXELS = 2 << 20
"""Of one image as the model gets it: what is larger is scaled down. Text of a screenshot can still be read."""
REQUEST_PIXELS = 4 << 20
"""Of all images of one request together, as the model gets them."""
TOKEN_PIXELS = 28 * 28
"""Pixels to a token at least: Qwen2.5-VL; Qwen 3.5 has 32 x 32, Gemma a fixed number of tokens an image."""
PREPARED_BYTES = 39
"""Of a pixel while it is made ready for the model: 3 colors in 8 bits, in 32 bits, and twice more in 32 bits where a
model reads an image as two frames."""


def share(images: int) -> int:
    """Return the pixels that each of a request's images may have at most."""
    return min(IMAGE_PIXELS, REQUEST_PIXELS // max(1, images))


def tokens(pixels: int, images: int) -> int:
    """Return the tokens at most that an image of this number of pixels takes in a prompt with `images` of them."""
    return min(pixels, share(images)) // TOKEN_PIXELS + 2


def room_bytes() -> int:
    """Return the bytes that the images of one request take before they pass through the model.

    One is decoded at a time, which at MOST_PIXELS takes 200 MB: less than they and the pass take together.
    """
    return REQUEST_PIXELS * PREPARED_BYTES
