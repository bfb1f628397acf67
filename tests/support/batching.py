"""Batches over a gateway's process, with the job run in this one: what a worker does, without its threads."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.gateway import Gateway

from state import keys, ledger, secrets, settings
from state.batches import batches, stored_files
from state.batches.batches import Batch, BatchRequest
from state.db import Database, open_database
from state.job import Job, get
from state.paths import Home
from tasks.batches import answering, control
from tasks.executor import perform
from tasks.kinds import KINDS
from tasks.runtime import runtime

CHAT = "/v1/chat/completions"


def line(name: str, text: str = "say hello", model: str = "standard", **changed: Any) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": text}]}
    return json.dumps({"custom_id": name, "method": "POST", "url": CHAT, "body": body} | changed)


def file_of(texts: Iterable[str]) -> bytes:
    return "\n".join(texts).encode() + b"\n"


@dataclass
class Batching:
    """A home whose gateway takes batches."""

    home: Home
    db: Database
    gateway: Gateway

    def key(self, name: str, **given: Any) -> str:
        path = keys.file(self.home)
        if name in {key.name for key in keys.read(path).values()}:
            keys.revoke(path, name)
        return keys.create(path, name, **given)

    def batch(self, content: bytes, owner: str = "mlxq", **given: Any) -> Batch:
        """Create a batch as the command line does."""
        file = stored_files.store(self.db, [content], owner, "lines.jsonl")
        endpoint = given.pop("endpoint", CHAT)
        request = BatchRequest(owner, given.pop("dialect", "openai"), endpoint, file.id, **given)
        return control.create(self.db, request)

    def work(self) -> Job:
        """Run the next job of a batch as a worker does, and return how it is then."""
        claim = ledger.claim(self.db, "bulk", {"batch"}, "boot/1/1")
        assert claim is not None, "no job waits"
        perform(KINDS["batch"], answering.answer_batch, claim)
        return get(self.db, claim.id)

    def answered(self, content: bytes, **given: Any) -> Batch:
        batch = self.batch(content, **given)
        job = self.work()
        ended = batches.get(self.db, batch.id)
        assert ended.ended, job.error
        return ended

    def lines(self, file_id: str | None) -> list[dict[str, Any]]:
        """Return the lines of a result file; none for None."""
        if file_id is None or not stored_files.path(self.home, file_id).exists():
            return []
        return [json.loads(text) for text in stored_files.path(self.home, file_id).read_text().splitlines()]

    def results(self, batch: Batch) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        return self.lines(batch.output_file), self.lines(batch.error_file)


def batching(gateway: Gateway) -> Batching:
    """Make a gateway's folder a home whose jobs this process runs."""
    home = Home(Path(gateway.home)).make()
    secrets.write(home.secrets, gateway.secrets)
    settings.write(home, "litellm-port", gateway.port)
    runtime.home, runtime.owner = home, "boot/1/1"
    db = open_database(home)
    runtime._local.database = db
    return Batching(home, db, gateway)
