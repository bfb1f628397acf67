"""A sleeping model that sees is loaded for the request that brings an image: real worker, gateway and engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import anthropic
import openai
import pytest
from contract.test_gateway_images import picture
from support import hybrid_model
from support.mlxq_home import Mlxq, until
from support.on_demand import all_asleep, gateway, make, states, up

from state import job, on_demand, stack
from state.paths import Home
from state.stack import Tier

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def mlxq(tmp_path_factory: pytest.TempPathFactory, builtin_model: Path) -> Iterator[Mlxq]:
    """Run a stack of a small model beside one that sees, asleep."""
    root = tmp_path_factory.mktemp("seeing")
    home = Home(root / "home").make()
    made = make(home, builtin_model)
    plain = hybrid_model.make("plain", root / "plain", builtin_model)
    hybrid_model.make("vision", home.models / "sees", builtin_model)
    stack.replace(made.db, [Tier("standard", replace(stack.engine(made.db, "standard"), weights=str(plain)))])
    made.work()
    up(made)
    until(lambda: on_demand.model(made.db, "sees"))
    yield made
    made.close()


@pytest.fixture
def asleep(mlxq: Mlxq) -> Iterator[Mlxq]:
    yield mlxq
    all_asleep(mlxq)


def claude(mlxq: Mlxq) -> anthropic.Anthropic:
    with gateway(mlxq) as known:
        key = known.headers["authorization"].removeprefix("Bearer ")
        return anthropic.Anthropic(base_url=str(known.base_url), api_key=key, max_retries=0, timeout=200)


def image() -> anthropic.types.ImageBlockParam:
    _, data = picture("red")
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}


def test_an_image_wakes_the_model_that_sees(asleep: Mlxq) -> None:
    """The stream is held with comments, which the official client passes over."""
    until(lambda: states(asleep).get("sees") == "sleeping")
    with claude(asleep).messages.stream(
        model="sees", max_tokens=4, messages=[{"role": "user", "content": [image(), {"type": "text", "text": "What?"}]}]
    ) as stream:
        said = stream.get_final_message()

    assert said.usage.output_tokens == 4
    assert said.usage.input_tokens > 16, "the image takes tokens of its own"
    assert states(asleep)["sees"] == "serving"


def test_an_image_for_one_that_does_not_see_wakes_nothing(asleep: Mlxq) -> None:
    with pytest.raises(anthropic.BadRequestError, match="does not take images"):
        claude(asleep).messages.create(model="alpha", max_tokens=4, messages=[{"role": "user", "content": [image()]}])
    assert states(asleep)["alpha"] == "sleeping"
    assert not [row for row in job.listing(asleep.db, kind="load", limit=20) if row.args["service"] == "alpha.int4"]


def test_responses_and_chats_of_a_sleeping_model_are_streamed_to_the_official_client(asleep: Mlxq) -> None:
    with gateway(asleep) as known:
        key = known.headers["authorization"].removeprefix("Bearer ")
        client = openai.OpenAI(base_url=str(known.base_url.join("/v1")), api_key=key, max_retries=0, timeout=200)
    with client.responses.stream(model="sees", input="hi", max_output_tokens=16) as stream:
        assert stream.get_final_response().usage
    all_asleep(asleep)
    chunks = client.chat.completions.create(
        model="sees", max_tokens=4, stream=True, messages=[{"role": "user", "content": "hi"}]
    )
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
