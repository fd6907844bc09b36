"""Doubles for tests of the front end: a core that says what it is told, and a small real tokenizer."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache

import msgspec
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from octavo.core.messages import Delta, StepOutputs, StepStats, Submit
from octavo.core.outputs import TokenLogprobs
from octavo.core.params import RequestOutputKind, SamplingParams
from octavo.core.prompt_logprobs import PromptRows
from octavo.core.request import FinishReason
from octavo.engine.client import InlineClient
from octavo.engine.detokenizer import TokenText
from octavo.engine.frontend import Frontend
from octavo.engine.inputs import InputProcessor, PromptLimits
from octavo.engine.outputs import OutputProcessor
from octavo.errors import InvalidRequest
from octavo.tokenization.tokenizer import Tokenizer

CORPUS = (
    "Once upon a time the cat sat on the mat. naïve café 你好世界 🙂🙃 END stop\n\nUser: hello Assistant: hi <b>x</b> "
    * 3
)


@cache
def byte_level_tokenizer() -> Tokenizer:
    """Byte-level BPE with merges that end inside characters, as real ones have."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<eos>", "<tool>"],
        show_progress=False,
    )
    backend.train_from_iterator([CORPUS], trainer)
    return Tokenizer(backend, {"eos_token": "<eos>"})


@cache
def byte_fallback_tokenizer() -> Tokenizer:
    """SentencePiece's kind: words with a leading ▁, bytes for what is not in the vocabulary."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "▁the", "▁cat", "▁sat", "END", "EN", "D", "s", "t", "o", "p", ".", "你", "▁▁"]
    backend = tokenizers.Tokenizer(
        models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], byte_fallback=True)
    )
    backend.add_special_tokens(["<s>", "</s>"])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Tokenizer(backend, {"eos_token": "</s>"})


@cache
def word_piece_tokenizer() -> Tokenizer:
    """Tokens whose text depends on their neighbours."""
    words = ["[UNK]", "[SEP]", "the", "cat", "##s", "sat", "##ing", ".", ",", "don", "'", "t", "END", "##END", "é"]
    backend = tokenizers.Tokenizer(models.WordPiece(vocab={word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.add_special_tokens(["[SEP]"])
    backend.decoder = decoders.WordPiece(cleanup=False)
    return Tokenizer(backend, {"eos_token": "[SEP]"})


@dataclass
class ScriptedRequest:
    submit: Submit
    token_ids: list[int]  # what it will say
    num_said: int = 0
    logprobs: list[TokenLogprobs] = field(default_factory=list)


def scripted_rows(prompt: list[int], params: SamplingParams) -> PromptRows:
    """Each token has the log-probability -position and rank 9; the top are 0, 1, 2 at -1."""
    num_top = params.prompt_logprobs or 0
    token_ids, logprobs, ranks = array("i"), array("f"), array("i")
    for position, token_id in enumerate(prompt[1:], 1):
        token_ids.extend([token_id, *range(num_top)])
        logprobs.extend([-position, *[-1.0] * num_top])
        ranks.extend([9, *range(1, num_top + 1)])
    columns = (token_ids.tobytes(), logprobs.tobytes(), ranks.tobytes())
    return PromptRows(0, len(prompt) - 1, 1 + num_top, *columns)


class ScriptedCore:
    """Says `script(submit)` token by token, one for each request and step, with the core's rules for stopping.

    `failures`: tokens after which a request of that name (the user's) fails.
    """

    max_total_tokens = 512

    def __init__(self, script: Callable[[Submit], list[int]], tokens_per_step: int = 1) -> None:
        self.script, self.tokens_per_step = script, tokens_per_step
        self.requests: dict[str, ScriptedRequest] = {}
        self.failures: dict[str, int] = {}
        self.aborted: list[str] = []
        self.added: list[Submit] = []
        self.refused: set[str] = set()
        self.num_steps = self.num_shutdowns = 0
        self.watched_for = 0.0
        self.rows_after = 0  # tokens of a streaming request before its prompt's log-probabilities come
        self.before_step: Callable[[], None] = lambda: None

    def add(self, submit: Submit) -> None:
        if any(submit.request_id.startswith(name) for name in self.refused):
            raise InvalidRequest(f"{submit.request_id} is refused")
        self.added.append(submit)
        self.requests[submit.request_id] = ScriptedRequest(submit, self.script(submit))

    def abort(self, request_ids: Iterable[str]) -> None:
        for request_id in request_ids:
            self.aborted.append(request_id)
            self.requests.pop(request_id, None)

    def has_work(self) -> bool:
        return bool(self.requests)

    def step(self) -> StepOutputs:
        self.before_step()
        self.num_steps += 1
        deltas = [delta for request in list(self.requests.values()) if (delta := self._advance(request)) is not None]
        return StepOutputs(deltas, StepStats(num_running=len(self.requests), schedule_seconds=1e-4))

    def _advance(self, request: ScriptedRequest) -> Delta | None:
        submit, params = request.submit, request.submit.params
        streams = params.output_kind is not RequestOutputKind.FINAL_ONLY or bool(params.stop)
        start, reason, stop_reason, error = request.num_said, None, None, None
        name = submit.request_id.rsplit("-", 1)[0]
        for _ in range(self.tokens_per_step):
            if request.num_said == self.failures.get(name):
                reason, error = FinishReason.ERROR, "its row is not finite"
                break
            token_id = request.token_ids[request.num_said % len(request.token_ids)]
            request.num_said += 1
            if token_id in submit.eos_token_ids:
                reason = FinishReason.STOP
            elif token_id in (params.stop_token_ids or ()):
                reason, stop_reason = FinishReason.STOP, token_id
            elif request.num_said == params.max_tokens:
                reason = FinishReason.LENGTH
            if reason is not None:
                break
        if reason is not None:
            del self.requests[submit.request_id]
        elif not streams:
            return None
        said = [request.token_ids[i % len(request.token_ids)] for i in range(request.num_said)]
        new = said[start:] if streams else said
        rows = None
        if params.logprobs is not None:
            rows = [
                TokenLogprobs(
                    [i, *range(params.logprobs)], [-0.5, *[-1.0] * params.logprobs], [2, *range(1, params.logprobs + 1)]
                )
                for i in new
            ]
        delta = Delta(submit.request_id, new, reason, stop_reason, error, rows, num_cached_tokens=16)
        if params.prompt_logprobs is not None and (start == self.rows_after or not streams) and error is None:
            delta = msgspec.structs.replace(delta, prompt_rows=scripted_rows(submit.prompt_token_ids, params))
        return delta

    def reset_prefix_cache(self) -> bool:
        return not self.requests

    def watch(self, seconds: float) -> None:
        self.watched_for = seconds

    def shutdown(self) -> None:
        self.num_shutdowns += 1


def scripted_frontend(
    script: Callable[[Submit], list[int]],
    tokenizer: Tokenizer | None = None,
    tokens_per_step: int = 1,
    chat_template: str | None = None,
) -> tuple[Frontend, ScriptedCore]:
    core = ScriptedCore(script, tokens_per_step)
    vocab_size = 1000 if tokenizer is None else tokenizer.vocab_size
    eos = [] if tokenizer is None or tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    frontend = Frontend(
        client=InlineClient(core),
        inputs=InputProcessor(PromptLimits(vocab_size, core.max_total_tokens, 20), tokenizer, eos, chat_template),
        outputs=OutputProcessor(None if tokenizer is None else TokenText(tokenizer)),
        tokenizer=tokenizer,
    )
    return frontend, core


def echo(submit: Submit) -> list[int]:
    """Says its prompt again and again."""
    return submit.prompt_token_ids
