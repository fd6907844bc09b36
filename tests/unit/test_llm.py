"""LLM: a batch in, its outputs in order; what is wrong is said before anything runs."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from octavo.core.params import RequestOutputKind, SamplingParams
from octavo.errors import EngineDead, InvalidRequest
from octavo.llm import LLM
from tests.unit.engine.scripted import ScriptedCore, byte_level_tokenizer, echo, scripted_frontend

PLAIN: dict[str, Any] = {"detokenize": False}


def make(**more: Any) -> tuple[LLM, ScriptedCore]:
    frontend, core = scripted_frontend(echo, **more)
    return LLM.from_frontend(frontend), core


def test_outputs_come_in_the_order_of_prompts() -> None:
    llm, _ = make()
    lengths = [9, 1, 5]
    outputs = llm.generate(
        [[i, i] for i in range(3)], [SamplingParams(max_tokens=n, **PLAIN) for n in lengths], use_tqdm=False
    )
    assert [len(output.outputs[0].token_ids) for output in outputs] == lengths
    assert [output.prompt_token_ids for output in outputs] == [[0, 0], [1, 1], [2, 2]]
    assert [output.request_id for output in outputs] == ["0", "1", "2"] and all(output.finished for output in outputs)
    assert llm.generate([9], SamplingParams(max_tokens=1, **PLAIN), use_tqdm=False)[0].request_id == "3"


def test_forms_of_prompts_and_defaults() -> None:
    llm, core = make(tokenizer=byte_level_tokenizer())
    llm.frontend.sampling_defaults = {"top_k": 5, "temperature": 0.5}
    assert llm.generate("hello ", use_tqdm=False)[0].outputs[0].text.startswith("hello hello")
    params = core.added[0].params
    assert (params.top_k, params.temperature, params.max_tokens) == (5, 0.5, 16)
    assert params.output_kind is RequestOutputKind.FINAL_ONLY
    assert llm.generate([], use_tqdm=False) == []
    assert len(llm.generate(["a", {"prompt": "b"}, [5, 6]], use_tqdm=False)) == 3
    llm.generate(["a", "b"], priority=[3, 1], use_tqdm=False)
    assert [submit.priority for submit in core.added[-2:]] == [3, 1]
    assert llm.get_default_sampling_params().top_k == 5
    assert llm.get_tokenizer() is byte_level_tokenizer()


def test_a_users_parameters_are_left_alone() -> None:
    llm, _ = make()
    params = SamplingParams(max_tokens=None, output_kind=RequestOutputKind.DELTA, **PLAIN)
    output = llm.generate([1, 2], params, use_tqdm=False)[0]
    assert len(output.outputs[0].token_ids) == 510
    assert params.max_tokens is None and params.output_kind is RequestOutputKind.DELTA


def test_invalid_input_runs_nothing() -> None:
    llm, core = make()
    with pytest.raises(InvalidRequest, match="prompt_token_ids") as caught:
        llm.generate([[1], [5000]], SamplingParams(**PLAIN), use_tqdm=False)
    assert "in prompt 1 of 2" in caught.value.__notes__
    assert not core.added and core.num_steps == 0
    assert llm.generate([[1]], SamplingParams(**PLAIN), use_tqdm=False)[0].finished


def test_what_the_core_refuses_takes_the_batch_back() -> None:
    llm, core = make()
    core.refused.add("1-")
    with pytest.raises(InvalidRequest, match="is refused"):
        llm.generate([[1], [2], [3]], SamplingParams(max_tokens=5, **PLAIN), use_tqdm=False)
    assert not core.requests and llm.frontend.outputs.num_unfinished == 0
    assert llm.generate([[1]], SamplingParams(**PLAIN), use_tqdm=False)[0].finished


def test_a_failed_request_harms_no_other() -> None:
    llm, core = make()
    core.failures["1"] = 2
    outputs = llm.generate([[1], [2], [3]], SamplingParams(max_tokens=5, **PLAIN), use_tqdm=False)
    assert [output.outputs[0].finish_reason for output in outputs] == ["length", "error", "length"]
    assert outputs[1].error == "its row is not finite" and outputs[0].error is None
    assert outputs[1].outputs[0].token_ids == [2, 2]


def test_stop_strings_end_the_request_in_the_core() -> None:
    llm, core = make(tokenizer=byte_level_tokenizer())
    output = llm.generate("please stop now", SamplingParams(max_tokens=400, stop="stop"), use_tqdm=False)[0]
    assert (output.outputs[0].text, output.outputs[0].finish_reason) == ("please ", "stop")
    assert len(core.aborted) == 1 and not core.requests


def test_chat() -> None:
    template = "{{ messages[-1].content }}|{{ add_generation_prompt }}|{{ enable_thinking }}"
    llm, core = make(tokenizer=byte_level_tokenizer(), chat_template=template)
    message = {"role": "user", "content": "hi"}
    one = llm.chat([message], use_tqdm=False, chat_template_kwargs={"enable_thinking": False})
    assert one[0].prompt == "hi|True|False"
    assert len(llm.chat([[message], [message]], use_tqdm=False)) == 2
    num_added = len(core.added)
    with pytest.raises(InvalidRequest, match=r"messages\[0\].role"):
        llm.chat([[message], [{"content": "x"}]], use_tqdm=False)
    assert len(core.added) == num_added


def test_ctrl_c_aborts_everything_between_two_steps() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever a test before this one left
    llm, core = make()
    is_inside = []

    def interrupt() -> None:
        if core.num_steps == 3:
            os.kill(os.getpid(), signal.SIGINT)
        is_inside.append(core.num_steps)  # reached: the step was not cut short

    core.before_step = interrupt
    with pytest.raises(KeyboardInterrupt):
        llm.generate([[1], [2]], SamplingParams(max_tokens=100, **PLAIN), use_tqdm=False)
    assert is_inside == [0, 1, 2, 3] and not core.requests and len(core.aborted) == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    core.before_step = lambda: None
    assert len(llm.generate([[1]], SamplingParams(max_tokens=5, **PLAIN), use_tqdm=False)) == 1


def test_lost_requests_are_an_error_not_a_hang() -> None:
    llm, core = make()
    core.before_step = core.requests.clear
    with pytest.raises(EngineDead, match="lost 1 requests"):
        llm.generate([[1]], SamplingParams(**PLAIN), use_tqdm=False)


def test_shutdown() -> None:
    llm, core = make()
    with llm:
        assert llm.reset_prefix_cache() is True
    llm.shutdown()
    assert core.num_shutdowns == 1
    with pytest.raises(EngineDead, match="shut down"):
        llm.generate([[1]], SamplingParams(**PLAIN))


def test_the_progress_bar_counts_requests(capsys: pytest.CaptureFixture[str]) -> None:
    llm, _ = make()
    llm.generate([[1], [2]], SamplingParams(max_tokens=3, **PLAIN))
    assert "Generating: 2 requests in" in capsys.readouterr().err
    llm.generate([[1], [2]], SamplingParams(max_tokens=3, **PLAIN), use_tqdm=False)
    assert capsys.readouterr().err == ""


def test_steps_are_reported() -> None:
    llm, core = make()
    steps: list[tuple[Any, float]] = []
    llm.on_step = lambda stats, seconds: steps.append((stats, seconds))
    llm.generate([[1]], SamplingParams(max_tokens=3, **PLAIN), use_tqdm=False)
    assert len(steps) == core.num_steps == 3 and all(stats.schedule_seconds > 0 for stats, _ in steps)
