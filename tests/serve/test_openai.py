"""The API by OpenAI's own client."""

import asyncio
import base64
import math
import subprocess

import numpy
import openai
import pytest
from conftest import MAMBA

PROMPT = "The city of London is"


@pytest.fixture(scope="module")
def client(mamba):
    return openai.OpenAI(base_url=f"{mamba.url}/v1", api_key="none", max_retries=0, timeout=600)


@pytest.fixture(scope="module")
def model(mamba):
    return mamba.name


@pytest.fixture(scope="module")
def greedy(start_server):
    """What the command continues the prompt with."""
    done = subprocess.run([start_server.command, "generate", MAMBA, "-p", PROMPT, "-n", "24"], capture_output=True)
    return done.stdout.decode().removesuffix("\n")


def test_models(client, model):
    assert [found.id for found in client.models.list()] == [model]
    assert client.models.retrieve(model).id == model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_a_completion_is_what_the_command_writes(client, model, greedy):
    answer = client.completions.create(model=model, prompt=PROMPT, max_tokens=24, temperature=0)
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason, choice.logprobs) == (greedy, "length", None)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (6, 24, 30)


def test_a_stream_says_the_same(client, model, greedy):
    events = list(
        client.completions.create(
            model=model,
            prompt=PROMPT,
            max_tokens=24,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(event.choices[0].text for event in events[:-1]) == greedy
    assert [event.choices[0].finish_reason for event in events[:-1]] == [None] * (len(events) - 2) + ["length"]
    assert len(events) > 10, "it comes in pieces"
    assert events[-1].choices == [] and events[-1].usage.completion_tokens == 24
    assert all(event.usage is None for event in events[:-1])


def test_chat(client, model):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is London?"}]
    options = {"model": model, "messages": messages, "max_completion_tokens": 12, "temperature": 0}
    answer = client.chat.completions.create(**options)
    events = list(client.chat.completions.create(**options, stream=True))
    message = answer.choices[0].message
    assert (message.role, answer.choices[0].finish_reason) == ("assistant", "length")
    assert events[0].choices[0].delta.role == "assistant"
    assert "".join(event.choices[0].delta.content or "" for event in events) == message.content != ""
    assert [event.choices[0].finish_reason for event in events[-2:]] == [None, "length"]
    rendering = "system: Be brief.\n\nuser: Where is London?\n\nassistant:"
    text = client.completions.create(model=model, prompt=rendering, max_tokens=12, temperature=0)
    assert text.choices[0].text == message.content
    assert text.usage.total_tokens == answer.usage.total_tokens
    parts = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Where is "}, {"type": "text", "text": "London?"}]},
    ]
    assert client.chat.completions.create(**options | {"messages": parts}).choices[0].message.content == message.content


def test_many_clients_of_one_loop(mamba, model):
    async def run():
        client = openai.AsyncOpenAI(base_url=f"{mamba.url}/v1", api_key="none", max_retries=0, timeout=600)

        async def whole(seed):
            return (
                (await client.completions.create(model=model, prompt=PROMPT, max_tokens=8, seed=seed)).choices[0].text
            )

        async def streamed(seed):
            stream = await client.completions.create(model=model, prompt=PROMPT, max_tokens=8, seed=seed, stream=True)
            return "".join([event.choices[0].text async for event in stream])

        texts = await asyncio.gather(*map(whole, range(8)), *map(streamed, range(8)))
        assert texts[:8] == texts[8:] and len(set(texts)) > 4

    asyncio.run(run())


def test_seeds(client, model):
    def text(**options):
        return client.completions.create(model=model, prompt=PROMPT, max_tokens=12, **options).choices[0].text

    assert text(seed=7) == text(seed=7) != text(seed=8)
    assert text(seed=-1) == text(seed=-1)
    assert len({text() for _ in range(4)}) > 1, "without a seed each text is another"


def test_choices(client, model):
    several = client.completions.create(model=model, prompt=[PROMPT, "In the year"], n=3, max_tokens=8, seed=5)
    assert [choice.index for choice in several.choices] == list(range(6))
    for i, choice in enumerate(several.choices):
        prompt = PROMPT if i < 3 else "In the year"
        alone = client.completions.create(model=model, prompt=prompt, max_tokens=8, seed=5 + i % 3)
        assert choice.text == alone.choices[0].text
    assert several.usage.completion_tokens == 48
    texts = [""] * 6
    stream = client.completions.create(
        model=model, prompt=[PROMPT, "In the year"], n=3, max_tokens=8, seed=5, stream=True
    )
    for event in stream:
        texts[event.choices[0].index] += event.choices[0].text
    assert texts == [choice.text for choice in several.choices]


def test_prompts_of_tokens(client, mamba, model, greedy):
    tokens = mamba.post("/tokenize", content=PROMPT)["tokens"]
    for prompt in (tokens, [tokens]):
        answer = client.completions.create(model=model, prompt=prompt, max_tokens=24, temperature=0)
        assert answer.choices[0].text == greedy


@pytest.mark.parametrize("stream", [False, True])
def test_stop_texts_across_tokens(client, model, greedy, stream):
    stop = greedy[len(greedy) // 2 - 3 : len(greedy) // 2 + 4]
    options = {"model": model, "prompt": PROMPT, "max_tokens": 24, "temperature": 0, "stop": ["never comes", stop]}
    answer = client.completions.create(**options, stream=stream)
    text, reason = "", None
    for event in answer if stream else [answer]:
        text += event.choices[0].text
        reason = event.choices[0].finish_reason
    assert (text, reason) == (greedy[: greedy.index(stop)], "stop")


def test_what_only_began_a_stop_text_is_written_at_the_end(client, model, greedy):
    options = {"model": model, "prompt": PROMPT, "max_tokens": 24, "temperature": 0, "stop": greedy[-3:] + "~"}
    assert client.completions.create(**options).choices[0].text == greedy
    stream = client.completions.create(**options, stream=True)
    assert "".join(event.choices[0].text for event in stream) == greedy


def test_logprobs_of_completions(client, model, greedy):
    options = {"model": model, "prompt": PROMPT, "max_tokens": 24, "temperature": 0, "logprobs": 3}
    found = client.completions.create(**options).choices[0].logprobs
    assert "".join(found.tokens) == greedy
    assert found.text_offset == [len("".join(found.tokens[:i])) for i in range(24)]
    for token, logprob, top in zip(found.tokens, found.token_logprobs, found.top_logprobs):
        assert len(top) == 3 and top[token] == logprob == max(top.values()) < 0
    streamed = [event.choices[0].logprobs for event in client.completions.create(**options, stream=True)]
    for field in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
        assert sum((getattr(part, field) for part in streamed if part), []) == getattr(found, field)


def test_logprobs_are_those_of_the_whole_vocabulary(client, mamba, model):
    """They sum to 1, and do not depend on how a token is chosen."""
    options = {"model": model, "prompt": PROMPT, "max_tokens": 1, "logprobs": 20}
    greedy = client.completions.create(**options, temperature=0).choices[0].logprobs.top_logprobs[0]
    drawn = client.completions.create(**options, temperature=1.7, seed=1, extra_body={"repetition_penalty": 1.5})
    assert drawn.choices[0].logprobs.top_logprobs[0] == greedy
    assert 0.4 < sum(map(math.exp, greedy.values())) < 1


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_of_chats(client, model, stream):
    options = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 6, "temperature": 0}
    answer = client.chat.completions.create(**options, logprobs=True, top_logprobs=2, stream=stream)
    content, text = [], ""
    for event in answer if stream else [answer]:
        choice = event.choices[0]
        content += choice.logprobs.content if choice.logprobs else []
        text += (choice.delta if stream else choice.message).content or ""
    assert len(content) == 6
    assert b"".join(bytes(item.bytes) for item in content).decode() == text
    for item in content:
        assert item.top_logprobs[0].token == item.token and item.top_logprobs[0].logprob == item.logprob
        assert len(item.top_logprobs) == 2


def test_errors(client, model):
    with pytest.raises(openai.NotFoundError, match="other"):
        client.completions.create(model="other", prompt=PROMPT)
    with pytest.raises(openai.BadRequestError) as found:
        client.completions.create(model=model, prompt=PROMPT, temperature=3)
    assert (found.value.param, found.value.code) == ("temperature", "invalid_value")
    with pytest.raises(openai.BadRequestError, match="tools"):
        client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "Hi"}],
            tools=[{"type": "function", "function": {"name": "f"}}],
        )
    with pytest.raises(openai.BadRequestError) as found:
        client.embeddings.create(model=model, input="text", dimensions=7)
    assert found.value.param == "dimensions"


@pytest.mark.parametrize("format", [openai.NOT_GIVEN, "float", "base64"])
def test_embeddings(client, mamba, model, format):
    """The client asks for base64 where nothing is said; both forms are the same numbers."""
    answer = client.embeddings.create(model=model, input=[PROMPT, "A river"], encoding_format=format)
    assert [item.index for item in answer.data] == [0, 1] and answer.model == model
    tokens = sum(len(mamba.post("/tokenize", content=text)["tokens"]) for text in (PROMPT, "A river"))
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == tokens
    plain = mamba.post("/v1/embeddings", input="A river")["data"][0]["embedding"]
    found = answer.data[1].embedding
    if isinstance(found, str):
        found = numpy.frombuffer(base64.b64decode(found), "<f4")
    assert numpy.array_equal(numpy.float32(found), numpy.float32(plain)) and len(plain) == 256
    assert abs(numpy.linalg.norm(plain) - 1) < 1e-6


def test_closing_a_stream_cancels_it(client, mamba, model):
    before = mamba.metrics()['hxq_generations_total{end="cancelled"}']
    stream = client.completions.create(model=model, prompt=PROMPT, max_tokens=60_000, stream=True)
    assert next(iter(stream)).choices[0].text is not None
    assert mamba.generations() == (0, 0, 1, 0)
    stream.close()
    mamba.becomes_idle()
    assert mamba.metrics()['hxq_generations_total{end="cancelled"}'] == before + 1


def test_timeouts_cancel(client, mamba, model):
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.5).completions.create(model=model, prompt=PROMPT, max_tokens=60_000)
    mamba.becomes_idle()
