"""What may be asked of files and batches: the bodies and the parameters of lists."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl

from pydantic import Field

from tasks.gateway.dialects.schemas import Fields, Object
from tasks.gateway.errors import Refusal, invalid

Endpoint = Literal["/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/v1/completions"]
CLOUD = "mlxq_cloud"
"""The key of a batch's metadata that lets the cloud answer its lines where no tier can: "allow"."""
LONGEST_PAGE = 1000
MOST_REQUESTS = 100_000


class NewBatch(Fields):
    """The body of POST /v1/batches."""

    input_file_id: str
    endpoint: Endpoint
    completion_window: Literal["24h"]
    metadata: Annotated[
        dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None, Field(max_length=16)
    ] = None


class MessageRequest(Fields):
    """One request of a message batch."""

    custom_id: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    params: Object


class NewMessageBatch(Fields):
    """The body of POST /v1/messages/batches."""

    requests: Annotated[list[MessageRequest], Field(min_length=1, max_length=MOST_REQUESTS)]


@dataclass(frozen=True)
class PageQuery:
    """Which part of a list is asked for."""

    limit: int
    after: str
    before: str
    purpose: str
    oldest_first: bool


def page_query(query: bytes, *, anthropic: bool, default: int, longest: int = LONGEST_PAGE) -> PageQuery | Refusal:
    """Return the page that a list's parameters ask for, or what is wrong with them."""
    values = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True)[:50])
    limit = values.get("limit", str(default))
    if not limit.isdecimal() or not 1 <= int(limit[:9]) <= longest:
        return invalid(f"`limit` must be a number from 1 to {longest}.", "limit")
    if values.get("order", "desc") not in {"asc", "desc"}:
        return invalid("`order` must be asc or desc.", "order")
    after, before = ("after_id", "before_id") if anthropic else ("after", "before")
    return PageQuery(
        int(limit),
        values.get(after, ""),
        values.get(before, "") if anthropic else "",
        values.get("purpose", ""),
        values.get("order") == "asc",
    )


def expires_in_s(fields: Mapping[str, str], default: float) -> float | Refusal:
    """Return the seconds after which an uploaded file expires (OpenAI's `expires_after`: an hour to 30 days)."""
    seconds: Any = fields.get("expires_after[seconds]")
    if seconds is None:
        return default
    if fields.get("expires_after[anchor]", "created_at") != "created_at":
        return invalid("`expires_after.anchor` must be created_at.", "expires_after.anchor")
    if not seconds.isdecimal() or not 3600 <= int(seconds[:9]) <= 2_592_000:  # noqa: PLR2004 (the reference's)
        return invalid("`expires_after.seconds` must be a number from 3600 to 2592000.", "expires_after.seconds")
    return float(seconds)
