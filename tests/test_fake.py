"""The stand-in answers in the same shapes as the engine itself."""

import inspect

import pytest

from logo_local.completions import Engine
from logo_local.engine import LoGo
from logo_local.errors import PoolError
from logo_local.fake import FakeLoGo

GREEDY = {"max_tokens": 3, "temperature": 0.0}
MESSAGES = [{"role": "user", "content": "hello there"}]


@pytest.fixture(scope="module")
def real(random_base, random_adapters):
    with LoGo(random_base, adapters=random_adapters, signal="norm", n_ctx=256) as llm:
        yield llm


@pytest.fixture
def fake():
    return FakeLoGo({f"ad{i}": 1.0 + i for i in range(5)}, [["some", " answer"]])


def shape(value):
    """The keys and types of nested dictionaries and lists."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shape(inner) for inner in value]
    return type(value)


def parts(answer):
    """What programs read of an answer or of a chunk."""
    choice = {key: answer["choices"][0][key] for key in ("text", "message") if
              key in answer["choices"][0]}  # fmt: skip
    logo = {**answer["logo"], "route": {**answer["logo"]["route"], "scores": {}}}
    return shape(choice), shape(answer["usage"]), shape(logo)


def test_the_fake_has_the_surface(fake):
    for name, member in vars(Engine).items():
        if inspect.isfunction(member) and not name.startswith("_"):
            assert callable(getattr(fake, name))
            assert callable(getattr(LoGo, name))
    for name in Engine.__annotations__:
        assert hasattr(fake, name)


def test_completions_have_one_shape(real, fake):
    assert parts(fake("hello", **GREEDY)) == parts(real("hello", **GREEDY))
    chats = [llm.create_chat_completion(messages=MESSAGES, **GREEDY) for llm in (fake, real)]
    assert parts(chats[0]) == parts(chats[1])


@pytest.mark.parametrize("chat", [False, True])
def test_streams_have_one_shape(real, fake, chat):
    def last(llm):
        if chat:
            chunks = list(llm.create_chat_completion(messages=MESSAGES, stream=True, **GREEDY))
        else:
            chunks = list(llm.create_completion("hello", stream=True, **GREEDY))
        assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None] * (
            len(chunks) - 1
        )
        assert all(("delta" in chunk["choices"][0]) == chat for chunk in chunks)
        return chunks[-1]

    assert last(fake)["logo"].keys() == last(real)["logo"].keys()


def test_routes_and_pools_alike(real, fake):
    for llm in (fake, real):
        assert llm.pool.names == ("ad0", "ad1", "ad2", "ad3", "ad4")
        assert len(llm.route(MESSAGES).names) == 3
        llm.pool.exclude("ad4")
        assert "ad4" not in llm.route("hello").all_scores
        llm.pool.auto()
        with llm.base_only():
            llm("hello", **GREEDY)
            assert llm.last_route.is_base
        with llm.under({"ad1": 0.25, "ad2": 0.75}):
            llm("hello", **GREEDY)
            assert llm.last_route.weights == (0.75, 0.25)
        with pytest.raises(PoolError), llm.under({"nobody": 1.0}):
            pass


def test_a_script_of_answers_and_failures():
    fake = FakeLoGo({"a": 1.0}, ["first", [ValueError("broken")], "last"])
    assert fake("x")["choices"][0]["text"] == "first"
    with pytest.raises(ValueError, match="broken"):
        fake("y")
    assert [fake("z")["choices"][0]["text"] for _ in range(2)] == ["last", "last"]
    assert [call.prompt for call in fake.history] == ["x", "y", "z", "z"]


def test_scores_may_depend_on_the_prompt():
    fake = FakeLoGo(lambda text: {"a": len(text), "b": 3.0}, names=["a", "b"])
    assert fake.route("x").names == ("b", "a")
    assert fake.route("long").names == ("a", "b")
    assert fake.route([1, 2, 3]).names == ("a", "b")
