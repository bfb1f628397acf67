"""Where the images of a checked request are, whatever its dialect."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from tasks.gateway.dialects import schemas
from tasks.gateway.ollama import fields


@dataclass(frozen=True)
class ImagePart:
    """One image of a request."""

    field: str
    """As `messages[0].content[1]`."""
    part: schemas.Image | schemas.ResponseImage | schemas.Picture | str
    """A text is the base64 that Ollama's API has, which holds no link."""

    @property
    def url(self) -> str:
        """Return where it is: a data URL, or what the client gave in its place."""
        match self.part:
            case schemas.Image():
                return self.part.image_url.url
            case schemas.ResponseImage():
                return self.part.image_url or ""
            case schemas.Picture():
                return picture_url(self.part.source)
            case str():
                return f"data:image/png;base64,{''.join(self.part.split())}"

    def put(self, kind: str, data: str) -> None:
        """Set the image itself in place of a link. `kind`: as image/png; `data`: base64."""
        match self.part:
            case schemas.Image():
                self.part.image_url.url = f"data:{kind};base64,{data}"
            case schemas.ResponseImage():
                self.part.image_url = f"data:{kind};base64,{data}"
            case schemas.Picture():
                self.part.source = schemas.ImageSource(type="base64", media_type=kind, data=data)
            case str():
                raise TypeError(kind)


def picture_url(source: schemas.ImageSource) -> str:
    """Return the URL of a picture in Anthropic's words."""
    if source.type == "base64" and source.data:
        return f"data:{source.media_type or 'image/png'};base64,{source.data}"
    return source.url or "" if source.type == "url" else ""


def of(body: schemas.Fields) -> list[ImagePart]:
    """Return the images of a request, in order."""
    match body:
        case schemas.Chat() | schemas.CountTokens():  # and Messages
            contents = ((f"messages[{at}].content", message.content) for at, message in enumerate(body.messages))
        case schemas.Responses() if isinstance(body.input, list):
            contents = ((f"input[{at}].content", _content(item)) for at, item in enumerate(body.input))
        case fields.OllamaChat():
            turns = enumerate(body.messages or ())
            return [ImagePart(f"messages[{at}].images", text) for at, turn in turns for text in turn.images or ()]
        case fields.OllamaTexts():
            return [ImagePart("images", text) for text in getattr(body, "images", None) or ()]
        case _:
            return []
    return [image for field, content in contents for image in _in(field, content)]


def _content(item: Any) -> Any:
    return getattr(item, "content", None) if isinstance(item, schemas.Item) else getattr(item, "output", None)


def _in(field: str, content: Any) -> Iterator[ImagePart]:
    for at, part in enumerate(cast("Sequence[Any]", content) if isinstance(content, list) else ()):
        match part:
            case schemas.Image() | schemas.ResponseImage() | schemas.Picture():
                yield ImagePart(f"{field}[{at}]", part)
            case schemas.ToolResult():
                yield from _in(f"{field}[{at}].content", part.content)
            case _:
                pass
