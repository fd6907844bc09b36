"""The front end's parts, put together: what `LLM` and `AsyncEngine` have in common."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from octavo.config.engine_config import EngineConfig
from octavo.config.options import make_options
from octavo.config.resolve import explain
from octavo.core.params import SamplingParams
from octavo.engine.client import EngineClient, InlineClient
from octavo.engine.configure import Configured, configure
from octavo.engine.detokenizer import TokenText
from octavo.engine.inputs import InputProcessor, PromptLimits
from octavo.engine.outputs import OutputProcessor
from octavo.errors import ConfigurationError, InvalidRequest
from octavo.sampling.processors import load_classes, path_of
from octavo.telemetry.collection import collection_paused
from octavo.telemetry.phases import Phases
from octavo.tokenization.chat_template import find_chat_template
from octavo.tokenization.tokenizer import Tokenizer, end_token_ids, tokenizer_path

_log = logging.getLogger(__name__)


@dataclass
class Frontend:
    """Everything between a user and the core. `configured` is None where the parts were made by hand."""

    client: EngineClient
    inputs: InputProcessor
    outputs: OutputProcessor
    tokenizer: Tokenizer | None = None
    sampling_defaults: Mapping[str, Any] = field(default_factory=dict)
    configured: Configured | None = None

    def default_params(self) -> SamplingParams:
        """What a request gets that brings no parameters: the generation config's values over ours."""
        return SamplingParams(**self.sampling_defaults)

    def learn(self, max_total_tokens: int) -> None:
        """The core has loaded: requests may be this long, which may be less than the configuration asks for."""
        self.inputs.limits = replace(self.inputs.limits, max_model_len=max_total_tokens)

    def require_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise InvalidRequest("the engine runs without a tokenizer (skip_tokenizer_init)", "tokenizer")
        return self.tokenizer


def open_frontend(model: str | Mapping[str, Any] | None, options: Mapping[str, Any]) -> Frontend:
    """Finds the model, starts a core in this process and loads the tokenizer beside it.

    Raises ConfigurationError, CheckpointError, OutOfMemory.
    """
    shape = model if isinstance(model, Mapping) else None
    named: dict[str, Any] = {} if model is None or shape is not None else {"model": model}
    classes = options.get("logits_processors")
    if isinstance(classes, Sequence) and not isinstance(classes, str):
        named["logits_processors"] = [path_of(processor) for processor in classes]
    return start_frontend(configure(make_options({**options, **named}), shape))


def start_frontend(configured: Configured) -> Frontend:
    config = configured.config
    _log.debug("choices:\n%s", explain(configured.resolved.reasons))
    phases = Phases()
    if configured.platform.before_torch is not None:
        resolve_name(configured.platform.before_torch)()
    with ThreadPoolExecutor(1, "octavo-tokenizer") as beside, collection_paused():
        text = beside.submit(_load_text, config)
        # torch comes with it: the front end itself does without
        assemble = import_module("octavo.engine.assemble")
        phases.end("imports")
        core = assemble.build_engine(config, configured.platform, phases)
        try:
            tokenizer, chat_template = text.result()
        except BaseException:
            core.shutdown()
            raise
    frontend = _assemble(configured, InlineClient(core), tokenizer, chat_template)
    frontend.learn(core.max_total_tokens)
    return frontend


def load_frontend(configured: Configured, client: EngineClient) -> Frontend:
    """The front end's own parts, for a core that is elsewhere. Raises CheckpointError, ConfigurationError."""
    tokenizer, chat_template = _load_text(configured.config)
    return _assemble(configured, client, tokenizer, chat_template)


def _assemble(
    configured: Configured, client: EngineClient, tokenizer: Tokenizer | None, chat_template: str | None
) -> Frontend:
    config = configured.config
    limits = PromptLimits(config.model.vocab_size, config.model.max_model_len, config.model.max_logprobs)
    return Frontend(
        client=client,
        inputs=InputProcessor(
            limits,
            tokenizer,
            end_token_ids(config, tokenizer),
            chat_template,
            load_classes(config.sampling.logits_processors),
        ),
        outputs=OutputProcessor(None if tokenizer is None else TokenText(tokenizer), config.text.stream_interval),
        tokenizer=tokenizer,
        sampling_defaults=config.text.sampling_defaults,
        configured=configured,
    )


def _load_text(config: EngineConfig) -> tuple[Tokenizer | None, str | None]:
    """The tokenizer and the chat template, where there are any."""
    if config.text.skip_tokenizer_init:
        return None, None
    path = tokenizer_path(config)
    tokenizer = Tokenizer.from_path(path)
    if config.text.chat_template is not None:
        return tokenizer, _read_template(config.text.chat_template)
    return tokenizer, find_chat_template(replace(config.model.checkpoint, path=path))


def _read_template(named: str) -> str:
    """A template, or what a file of that name holds. Raises ConfigurationError."""
    if "{" in named or "\n" in named:
        return named
    try:
        return Path(named).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"chat_template: {named} is neither a template nor a readable file: {error}") from None
