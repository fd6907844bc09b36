"""Every check of SamplingParams, its normal forms, and its way over the wire."""

from __future__ import annotations

import fractions
import math

import msgspec
import numpy as np
import pytest

from octavo.core.params import ProcessorCall, RepetitionDetection, RequestOutputKind, SamplingParams
from octavo.errors import InvalidParameter, InvalidRequest

NAN, INF, HUGE = math.nan, math.inf, 10**400


def test_defaults_are_vllms() -> None:
    params = SamplingParams()
    assert {name: getattr(params, name) for name in params.__struct_fields__} == {
        "n": 1,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "seed": None,
        "stop": [],
        "stop_token_ids": [],
        "ignore_eos": False,
        "max_tokens": 16,
        "min_tokens": 0,
        "logprobs": None,
        "detokenize": True,
        "skip_special_tokens": True,
        "spaces_between_special_tokens": True,
        "include_stop_str_in_output": False,
        "output_kind": RequestOutputKind.CUMULATIVE,
        "structured_outputs": None,
        "best_of": None,
        "logit_bias": None,
        "allowed_token_ids": None,
        "bad_words": None,
        "bad_words_token_ids": None,
        "logits_processors": None,
        "extra_args": None,
        "prompt_logprobs": None,
        "logprob_token_ids": None,
        "prompt_logprob_token_ids": None,
        "prompt_logprob_start": 0,
        "logprobs_mode": None,
        "flat_logprobs": False,
        "stream_interval": None,
        "thinking_token_budget": None,
        "thinking": None,
        "repetition_detection": None,
        "truncate_prompt_tokens": None,
        "truncation_side": "left",
        "skip_reading_prefix_cache": None,
        "use_beam_search": False,
        "length_penalty": 1.0,
        "early_stopping": False,
        "trace_decode_token_ids": None,
        "watermarking": None,
        "routed_experts_prompt_start": 0,
        "skip_clone": False,
    }


REFUSED = [
    # field, value, part of the limit that the message must name
    ("n", 0, "from 1 to 16384"),
    ("n", 16385, "from 1 to 16384"),
    ("n", True, "an integer"),
    ("n", 1.0, "an integer"),
    ("n", "2", "an integer"),
    ("n", HUGE, "within 64 bits"),
    *((f"{kind}_penalty", value, "from -2 to 2") for kind in ("presence", "frequency") for value in (-2.01, 2.01)),
    *((f"{kind}_penalty", NAN, "finite") for kind in ("presence", "frequency", "repetition")),
    ("repetition_penalty", 0, "from 1e-06 to 1e+06"),
    ("repetition_penalty", -1.5, "from 1e-06 to 1e+06"),
    ("repetition_penalty", 5e-324, "from 1e-06 to 1e+06"),
    ("repetition_penalty", INF, "finite"),
    ("repetition_penalty", None, "a number"),
    ("temperature", -0.1, "at least 0"),
    ("temperature", NAN, "finite"),
    ("temperature", INF, "finite"),
    ("temperature", "hot", "a number"),
    ("temperature", True, "a number"),
    ("temperature", HUGE, "finite"),
    ("top_p", 0, "greater than 0 and at most 1"),
    ("top_p", 1.001, "greater than 0 and at most 1"),
    ("top_p", NAN, "finite"),
    ("top_k", -2, "0 (off) or at least 1"),
    ("top_k", 1.5, "an integer"),
    ("top_k", False, "an integer"),
    ("min_p", -0.01, "from 0 to 1"),
    ("min_p", 1.01, "from 0 to 1"),
    ("seed", "7", "an integer"),
    ("seed", 2**63, "within 64 bits"),
    ("stop", "", "free of empty strings"),
    ("stop", ["a", ""], "free of empty strings"),
    ("stop", ["a", 3], "a string"),
    ("stop", 3, "a string"),
    ("stop_token_ids", [1, "2"], "integers"),
    ("stop_token_ids", [True], "integers"),
    ("stop_token_ids", [-1], "negative"),
    ("stop_token_ids", 5, "integers"),
    ("ignore_eos", 1, "true or false"),
    ("detokenize", "false", "true or false"),
    ("skip_special_tokens", None, "true or false"),
    ("spaces_between_special_tokens", 0, "true or false"),
    ("include_stop_str_in_output", "yes", "true or false"),
    ("max_tokens", 0, "at least 1"),
    ("max_tokens", 2.5, "an integer"),
    ("min_tokens", -1, "at least 0"),
    ("min_tokens", 17, "at most max_tokens=16"),
    ("logprobs", -2, "at least 0, or -1"),
    ("logprobs", False, "an integer"),
    ("prompt_logprobs", -2, "at least 0, or -1"),
    ("logprob_token_ids", list(range(129)), "at most 128 of them"),
    ("logprob_token_ids", [-1], "free of negative ids"),
    ("logprobs_mode", "raw", "one of raw_logprobs"),
    ("prompt_logprob_token_ids", [], "at least one token id"),
    ("prompt_logprob_token_ids", "12", "a list of token ids"),
    ("prompt_logprob_start", -1, "at least 0"),
    ("flat_logprobs", 1, "true or false"),
    ("best_of", 0, "from n=1 to 16384"),
    ("best_of", 16385, "from n=1 to 16384"),
    ("best_of", "2", "an integer"),
    ("logit_bias", [1], "an object such as"),
    ("allowed_token_ids", [], "at least one token id"),
    ("allowed_token_ids", [2, -1], "free of negative ids"),
    ("bad_words", "word", "a list of strings"),
    ("bad_words", ["a", " "], "not empty"),
    ("bad_words", [1], "not empty"),
    ("bad_words_token_ids", [[1], []], "free of empty lists"),
    ("trace_decode_token_ids", [], "at least one token id"),
    ("logits_processors", 3, "a list of callables"),
    ("extra_args", [1], "an object"),
    ("stream_interval", 0, "at least 1"),
    ("thinking_token_budget", -2, "at least -1 (-1: no limit)"),
    ("truncate_prompt_tokens", 0, "at least 1, or -1"),
    ("truncate_prompt_tokens", -2, "at least 1, or -1"),
    ("truncation_side", "middle", "left or right"),
    ("skip_reading_prefix_cache", "yes", "true or false"),
    ("length_penalty", NAN, "finite"),
    ("use_beam_search", 1, "true or false"),
    ("watermarking", True, "null"),
    ("routed_experts_prompt_start", 1, "0: no model"),
    ("output_kind", 3, "0 (cumulative)"),
    ("output_kind", "delta", "0 (cumulative)"),
]


@pytest.mark.parametrize(("field", "value", "limit"), REFUSED)
def test_a_bad_value_is_refused_with_field_value_and_limit(field: str, value: object, limit: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        SamplingParams(**{field: value})
    message = str(caught.value)
    assert caught.value.field == field
    assert message.startswith(f"{field} must be ")
    assert limit in message
    if value is not HUGE and value != 2**63 and not isinstance(value, list):
        assert repr(value) in message or repr(float(value)) in message  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 16384},
        {"presence_penalty": -2, "frequency_penalty": 2},
        {"repetition_penalty": 1e-3},
        {"temperature": 100.0},
        {"top_p": 1e-9},
        {"top_k": 2**40},
        {"min_p": 1},
        {"seed": -(2**63)},
        {"seed": 0},
        {"max_tokens": None, "min_tokens": 10**9},
        {"max_tokens": 3, "min_tokens": 3},
        {"logprobs": -1},
        {"logprobs": 0},
        {"detokenize": False, "stop_token_ids": [3]},
        {"n": 2, "temperature": 0.5},
        {"n": 2, "best_of": 2},
        {"n": 2, "best_of": 3, "use_beam_search": True, "temperature": 0.0, "length_penalty": -1.0},
        {"logprob_token_ids": list(range(128)), "logprobs_mode": "processed_logits"},
        {"prompt_logprob_token_ids": [[1, 2], [3, 3]], "prompt_logprob_start": 7},
        {"truncate_prompt_tokens": -1, "truncation_side": "right"},
        {"repetition_detection": RepetitionDetection(4, 0, 2)},
    ],
)
def test_values_at_the_limit_are_taken(fields: dict[str, object]) -> None:
    params = SamplingParams(**fields)  # type: ignore[arg-type]
    assert {name: getattr(params, name) for name in fields} == fields


def test_normal_forms() -> None:
    assert SamplingParams(seed=-1).seed is None
    assert SamplingParams(top_k=-1).top_k == 0
    assert SamplingParams(stop="END").stop == ["END"]
    assert SamplingParams(stop=("a", "b")).stop_strings == ["a", "b"]  # type: ignore[arg-type]
    assert SamplingParams(stop_token_ids=[5, 3, 5]).stop_token_ids == [5, 3]
    assert SamplingParams(logprobs=True).logprobs == 1
    assert SamplingParams(thinking_token_budget=-1).thinking_token_budget is None
    assert SamplingParams(logit_bias={"7": 1, 8: -300}).logit_bias == {7: 1.0, 8: -100.0}  # type: ignore[dict-item]
    call = SamplingParams(logits_processors=[{"name": "shift", "arguments": {"by": 2}}, len]).logits_processors
    assert call == [ProcessorCall("shift", {"by": 2}), len]
    assert SamplingParams(output_kind=2).output_kind is RequestOutputKind.FINAL_ONLY  # type: ignore[arg-type]
    params = SamplingParams(temperature=np.float32(0.5), top_k=np.int64(7), top_p=fractions.Fraction(1, 2))  # type: ignore[arg-type]
    assert (type(params.temperature), type(params.top_k), params.top_p) == (float, int, 0.5)


def test_small_temperatures_are_raised_and_zero_is_greedy(caplog: pytest.LogCaptureFixture) -> None:
    raised = SamplingParams(temperature=1e-6, top_p=0.5)
    assert (raised.temperature, raised.is_greedy, raised.top_p) == (0.01, False, 0.5)
    assert "raised to 0.01" in caplog.text
    greedy = SamplingParams(temperature=0, top_p=0.5, top_k=4, min_p=0.5)
    assert greedy.is_greedy
    assert (greedy.top_p, greedy.top_k, greedy.min_p) == (1.0, 0, 0.0)


def test_fields_that_exclude_each_other() -> None:
    with pytest.raises(InvalidParameter, match=r"n must be 1 when sampling is greedy .* got 2"):
        SamplingParams(temperature=0.0, n=2)
    with pytest.raises(InvalidParameter, match=r"best_of must be 1 when sampling is greedy .* got 2"):
        SamplingParams(temperature=0.0, best_of=2)
    with pytest.raises(InvalidParameter, match="stop must be empty when detokenize is false"):
        SamplingParams(stop="x", detokenize=False)
    with pytest.raises(InvalidRequest, match="best_of over n cannot be streamed"):
        SamplingParams(best_of=2, output_kind=RequestOutputKind.DELTA)
    with pytest.raises(InvalidRequest, match="beam search cannot be streamed"):
        SamplingParams(use_beam_search=True, output_kind=RequestOutputKind.DELTA)
    for name, value in (("stop", ["x"]), ("min_tokens", 1), ("prompt_logprobs", 0), ("thinking_token_budget", 3)):
        with pytest.raises(InvalidRequest, match=f"{name} cannot be combined with use_beam_search") as caught:
            SamplingParams(use_beam_search=True, **{name: value})
        assert caught.value.field == name
    for field in ({"length_penalty": 0.5}, {"early_stopping": True}):
        with pytest.raises(InvalidRequest, match="has a meaning only with use_beam_search"):
            SamplingParams(**field)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="equally many ids in each row"):
        SamplingParams(prompt_logprob_token_ids=[[1], [1, 2]])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_pattern_size": 2}, "repetition_detection.min_count must be at least 2, got 0"),
        ({"max_pattern_size": 2, "min_count": 1}, "min_count must be at least 2"),
        ({"max_pattern_size": -1, "min_count": 2}, "max_pattern_size must be at least 0"),
        ({"max_pattern_size": 2, "min_pattern_size": 3, "min_count": 2}, "at most max_pattern_size=2"),
        ({"size": 2}, "has no field 'size'"),
    ],
)
def test_repetition_detection_is_checked(fields: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        SamplingParams.from_dict({"repetition_detection": fields})


def test_a_registered_processor_is_named() -> None:
    for given, message in (
        ({"arguments": {}}, "the name of a registered"),
        ({"name": "x", "arguments": [1]}, "arguments must be an object"),
        ({"name": "x", "args": {}}, "not 'args'"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            SamplingParams(logits_processors=[given])


def test_checks_that_need_the_model() -> None:
    SamplingParams(stop_token_ids=[99], logprobs=20).validate_for(vocab_size=100, max_logprobs=20)
    SamplingParams(logprobs=-1).validate_for(vocab_size=100, max_logprobs=-1)
    with pytest.raises(InvalidParameter, match=r"stop_token_ids must be below the vocabulary size 100, got \[100\]"):
        SamplingParams(stop_token_ids=[1, 100]).validate_for(vocab_size=100, max_logprobs=20)
    for field in ("allowed_token_ids", "logprob_token_ids", "trace_decode_token_ids", "prompt_logprob_token_ids"):
        with pytest.raises(InvalidParameter, match=rf"{field} must be below the vocabulary size 100, got \[100\]"):
            SamplingParams(**{field: [1, 100]}).validate_for(vocab_size=100, max_logprobs=20)
    with pytest.raises(InvalidParameter, match=r"logit_bias must be below the vocabulary size 100, got \[100\]"):
        SamplingParams(logit_bias={100: 1.0}).validate_for(vocab_size=100, max_logprobs=20)
    with pytest.raises(InvalidParameter, match=r"prompt_logprobs must be at most 20 .* got 21"):
        SamplingParams(prompt_logprobs=21).validate_for(vocab_size=100, max_logprobs=20)
    with pytest.raises(InvalidParameter, match=r"logprobs must be at most 20 .* got 21"):
        SamplingParams(logprobs=21).validate_for(vocab_size=100, max_logprobs=20)
    with pytest.raises(InvalidParameter, match=r"at most 20 .*whole vocabulary, 100.* got -1"):
        SamplingParams(logprobs=-1).validate_for(vocab_size=100, max_logprobs=20)
    with pytest.raises(InvalidParameter, match="at most 100"):
        SamplingParams(logprobs=101).validate_for(vocab_size=100, max_logprobs=-1)


def test_a_field_changed_later_is_checked_again() -> None:
    params = SamplingParams()
    params.stop = "END"
    params.temperature = -1.0
    with pytest.raises(InvalidParameter, match="temperature"):
        params.validate_for(vocab_size=100, max_logprobs=20)
    params.temperature = 0.7
    params.validate_for(vocab_size=100, max_logprobs=20)
    assert params.stop == ["END"]


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(InvalidRequest, match="did you mean temperature") as caught:
        SamplingParams.from_dict({"temprature": 0.5})
    assert caught.value.field == "temprature"
    with pytest.raises(InvalidRequest, match="known are n, "):
        SamplingParams.from_dict({"zzzzzz": 0.5})
    with pytest.raises(InvalidRequest, match="must be an object, got list"):
        SamplingParams.from_dict([1])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="guided_json"):
        SamplingParams(guided_json={})  # type: ignore[call-arg]


def test_from_dict_takes_none_as_not_given() -> None:
    params = SamplingParams.from_dict({"n": None, "top_p": None, "max_tokens": None, "temperature": 0.3})
    assert params == SamplingParams(max_tokens=None, temperature=0.3)


def test_generation_config_gives_defaults_that_the_user_overrides() -> None:
    config = {
        "temperature": 0.6,
        "top_k": 20,
        "top_p": None,
        "max_new_tokens": 300,
        "repetition_penalty": 1.1,
        "do_sample": False,
        "eos_token_id": 2,
    }
    defaults = SamplingParams.from_generation_config(config)
    assert defaults == SamplingParams(temperature=0.6, top_k=20, max_tokens=300, repetition_penalty=1.1)
    asked = SamplingParams.from_generation_config(config, temperature=0.9, max_tokens=None, min_p=0.1)
    assert asked == SamplingParams(temperature=0.9, top_k=20, max_tokens=None, repetition_penalty=1.1, min_p=0.1)
    with pytest.raises(InvalidRequest, match="in the model's generation_config: top_p must be"):
        SamplingParams.from_generation_config({"top_p": 2})
    assert SamplingParams.from_generation_config({"top_p": 2}, top_p=0.5).top_p == 0.5
    with pytest.raises(InvalidRequest, match="did you mean top_k"):
        SamplingParams.from_generation_config(config, topk=3)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.0, max_tokens=None, stop=["é", "b"], stop_token_ids=[1, 2], logprobs=-1),
        SamplingParams(
            n=3,
            seed=-(2**63),
            top_k=5,
            min_p=0.1,
            top_p=0.3,
            presence_penalty=-1,
            frequency_penalty=2,
            repetition_penalty=1.3,
            min_tokens=4,
            ignore_eos=True,
            detokenize=False,
            skip_special_tokens=False,
            spaces_between_special_tokens=False,
            include_stop_str_in_output=True,
            output_kind=RequestOutputKind.DELTA,
        ),
    ],
)
def test_the_wire_keeps_everything(params: SamplingParams) -> None:
    wire = msgspec.msgpack.encode(params)
    assert msgspec.msgpack.decode(wire, type=SamplingParams) == params


def test_the_wire_is_checked_too() -> None:
    for fields in ({"top_p": 7.0}, {"unheard_of": 1}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.msgpack.decode(msgspec.msgpack.encode(fields), type=SamplingParams)
    assert len(msgspec.msgpack.encode(SamplingParams())) < 32  # defaults do not travel
