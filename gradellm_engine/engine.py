"""The engine's face: a loaded model that generates, explains and tokenises.

    engine = Engine.load("path/or/hub-id")
    for step in engine.generate("Once upon a time", Sampling(max_new_tokens=32), AttributionSettings()):
        print(step.text, step.attribution.scores)

One thread at a time. Several generations may be open and are iterated in turn; a server that runs many at once makes
streams and gives them to the scheduler, which reads the model's weights once for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial

import torch
from torch import Tensor

from gradellm_engine.core.generation import GenerationIterator
from gradellm_engine.core.lockstep import FollowerLoop, RankZeroScheduler, records_call
from gradellm_engine.core.request import ContrastText, Request, RequestSpec, normalisation_mask
from gradellm_engine.core.sampler import random_seed
from gradellm_engine.core.scheduler import Scheduler
from gradellm_engine.distributed.process_group import ProcessGroup
from gradellm_engine.errors import InvalidRequestError, ModelLoadError
from gradellm_engine.faithfulness.evaluation import Evaluation
from gradellm_engine.faithfulness.pass_budget import PassBudget
from gradellm_engine.faithfulness.results import EvaluationItem, EvaluationSummary
from gradellm_engine.faithfulness.settings import (
    MAX_EVALUATION_SEQUENCES,
    MAX_EVALUATION_STEP_TOKENS,
    EvaluatedMethod,
    EvaluationSettings,
)
from gradellm_engine.methods.base import Method
from gradellm_engine.methods.cost_model import Estimate, ModelCost, check_memory, estimate, model_cost
from gradellm_engine.methods.post_hoc import CompletionContext, CompletionModel, ScoreStream, check_baseline
from gradellm_engine.methods.registry import METHODS, method_named
from gradellm_engine.methods.selected_steps import post_hoc_scores, scores_at
from gradellm_engine.model.loader import LoadedModel, ModelInfo, Progress, load_model
from gradellm_engine.model.quantization import Quantization
from gradellm_engine.params import AttributionSettings, GradEllm, NormaliseOver, Rotary, Sampling, Switches
from gradellm_engine.tokenization.detokenizer import CONTEXT_TOKENS
from gradellm_engine.tokenization.prompt import Prompt, prompt_tails
from gradellm_engine.tokenization.prompt_input import PromptInput, check_text
from gradellm_engine.tokenization.prompt_limits import PromptLimits
from gradellm_engine.tokenization.prompt_reader import check_embedded, check_token_ids, encode, read_prompt
from gradellm_engine.utils.memory import available_bytes
from gradellm_engine.utils.threads import available_cpus, use_threads

DEFAULT_NEW_TOKENS = 256
DEFAULT_MAX_NEW_TOKENS = 4096
DEFAULT_MAX_RUNNING = 16
KV_SHARE = 0.5  # of the memory that is free once the model is loaded
METHOD_SHARE = 0.5  # of what is free then
MIN_PLACES = 16
# Tokens that one pass of an evaluation reads at most: enough for speed, and soon over.
MAX_EVALUATION_PASS_TOKENS = {"cpu": 4096, "cuda": 16384}


class Engine:
    """One decoder-only model that explains what it generates.

    Attributes:
        info: the model.
        context_tokens: prompt and completion together at most: the model's context, or what its memory holds.
        max_prompt_tokens: tokens of a prompt at most; one more must fit.
        max_new_tokens: tokens of a completion at most.
        prompt_limits: what an input may be at most, known without reading it.
        kv_bytes: memory of keys and values.
        kv_tokens: tokens that it holds.
        method_bytes: memory that methods which look at whole completions may take.
        scheduler: runs streams.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        max_running: int = DEFAULT_MAX_RUNNING,
        kv_bytes: int | None = None,
        method_bytes: int | None = None,
        use_graphs: bool = True,
    ) -> None:
        self.model = model
        self.info: ModelInfo = model.info
        ranks = model.runner.ranks
        free = free_bytes(model.runner.device)
        num_places = _num_places(model, max_running, kv_bytes)
        if ranks is not None:
            free, num_places = ranks.all_reduce_min([free, num_places])
        model.runner.allocate_pool(num_places)
        if use_graphs:
            model.runner.use_graphs()
        self.kv_tokens = num_places
        self.kv_bytes = num_places * model.runner.bytes_per_token
        self.context_tokens = min(model.info.context_tokens, num_places)
        self.max_prompt_tokens = self.context_tokens - 1
        self.max_new_tokens = min(max_new_tokens, self.max_prompt_tokens)
        self.prompt_limits = PromptLimits.of(model.encoder, self.max_prompt_tokens)
        model.encoder.prepare()
        self.scheduler = _scheduler(model, max_running)
        if method_bytes is None:
            method_bytes = max(1, int(METHOD_SHARE * (free - self.kv_bytes)))
        if method_bytes < 1:
            raise ModelLoadError(f"methods need memory of their own; {method_bytes} bytes are none")
        self.method_bytes = method_bytes
        if ranks is not None:
            limits = f"--max-running {max_running}, --max-new-tokens {self.max_new_tokens}, method bytes {method_bytes}"
            ranks.assert_equal({"limits": f"{limits}, a context of {self.context_tokens}"})
            self.model_cost = ranks.broadcast_object(self.model_cost)  # now, while all are here
            ranks.use_pass_timeout()

    @property
    def devices(self) -> list[str]:
        """Where this process has its part of the model."""
        return sorted({str(shape.device) for shape in self.model.runner.layer_shapes})

    @property
    def uses_graphs(self) -> bool:
        """Whether decode steps are recorded at first use, and replayed."""
        return self.model.runner.cuda_graphs is not None

    @cached_property
    def model_cost(self) -> ModelCost:
        """What passes over whole sequences take of this model; found by trying, once."""
        return model_cost(self.model.runner)

    def estimate(self, switches: Switches, num_prompt_tokens: int, num_new_tokens: int) -> Estimate:
        """What explaining a completion would take."""
        method = method_named(switches.name)
        return estimate(method, switches, self.model_cost, num_prompt_tokens, num_new_tokens)

    def refusal(self, method: Method) -> str:
        """Why this model cannot be explained by a method; empty where it can."""
        if method.needs_gates and self.model.family.gates is None:
            its = f"{method.name} is not defined for the family {self.info.family}"
            return f"{its}: its experts' gates cannot be told apart from outside"
        return ""

    def run_follower(self) -> None:
        """On any rank but the first: run what rank 0 runs, until it says that it is over.

        Rank 0 must not pause for a minute, or it is taken for lost: a server never does.

        Raises:
            GroupLostError: where it cannot be in step any more.
        """
        ranks = self.model.runner.ranks
        if ranks is None or ranks.is_rank0:
            raise RuntimeError("only a rank that does not lead can follow")
        FollowerLoop(self, ranks).follow()

    def stop_followers(self) -> None:
        """Let ranks that follow go, where there are any."""
        if isinstance(self.scheduler, RankZeroScheduler):
            self.scheduler.end()

    @classmethod
    def load(
        cls,
        name: str | None = None,
        *,
        revision: str | None = None,
        dtype: str = "auto",
        quantization: Quantization = Quantization.NONE,
        device: str = "auto",
        device_map: str | None = None,
        ranks: ProcessGroup | None = None,
        context_tokens: int | None = None,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        max_running: int = DEFAULT_MAX_RUNNING,
        kv_bytes: int | None = None,
        method_bytes: int | None = None,
        threads: int | None = None,
        use_graphs: bool = True,
        batch_invariant: bool = False,
        progress: Progress = lambda stage: None,
    ) -> Engine:
        """Load a model by local path or hub id, the demo model by default.

        See `gradellm_engine.model.loader.load_model`.

        `max_running` requests run at the same time, with completions of at most `max_new_tokens`. `kv_bytes` is the
        memory for keys and values, taken at once and never exceeded; `method_bytes` what methods that look at whole
        completions may take beside it; None for a share of what is free of either. `threads` sets
        the process's CPU threads; None for as many as it may run at once. `ranks` are the processes that share the
        model out: each loads alike, the first is asked and the others `follow`. `record_steps` has a GPU replay decode
        steps as CUDA graphs, and a CPU run them as straight lines, where the model allows it. With
        `batch_invariant` a stream's tokens and vectors are the same to the last bit whatever else runs and however it
        is read: see `gradellm_engine.layers.batch_invariant`.
        """
        if threads is not None and threads < 1:
            raise ModelLoadError(f"at least 1 thread is needed, {threads} were asked for")
        use_threads(threads if threads or ranks is None else ranks.cpus(available_cpus()))
        if max_new_tokens < 1:
            raise ModelLoadError(f"completions of up to {max_new_tokens} tokens were asked for; at least 1 is needed")
        model = load_model(
            name,
            revision=revision,
            dtype=dtype,
            quantization=quantization,
            device=device,
            device_map=device_map,
            ranks=ranks,
            context_tokens=context_tokens,
            batch_invariant=batch_invariant,
            progress=progress,
        )
        return cls(
            model,
            max_new_tokens=max_new_tokens,
            max_running=max_running,
            kv_bytes=kv_bytes,
            method_bytes=method_bytes,
            use_graphs=use_graphs,
        )

    def tokenize(self, given: PromptInput | str | Prompt) -> Prompt:
        """Render and tokenise an input as `generate` would; a prompt is one already.

        Raises:
            InvalidRequestError: naming the field that is at fault.
        """
        if isinstance(given, Prompt):
            return given
        if isinstance(given, str):
            given = PromptInput(prompt=given)
        return read_prompt(given, self.model.encoder, self.info.vocab_size, self.prompt_limits)

    def generate(
        self,
        given: PromptInput | str,
        sampling: Sampling = Sampling(),
        attribution: AttributionSettings | None = None,
        *,
        forced_ids: Sequence[int] = (),
        first_attribution: int | None = None,
    ) -> GenerationIterator:
        """Generate a completion, with every token explained where `attribution` says how.

        Args:
            given: a raw prompt, or an input of any form.
            sampling: how tokens are chosen.
            attribution: what to explain; None for tokens alone.
            forced_ids: tokens that the completion begins with, to resume a stream after them.
            first_attribution: the first completion token to explain, if earlier than the first that is generated.

        Raises:
            InvalidRequestError: naming the field that is at fault.
        """
        stream = self.generation_request(
            given, sampling, attribution, forced_ids=forced_ids, first_attribution=first_attribution
        )
        return GenerationIterator(self.scheduler, stream)

    def attribute(
        self,
        given: PromptInput | str,
        completion: str | Sequence[int],
        attribution: AttributionSettings | None = None,
        *,
        num_alternatives: int = 0,
    ) -> GenerationIterator:
        """Explain a completion that exists already, given as text or as token ids.

        Raises:
            InvalidRequestError: naming the field that is at fault.
        """
        stream = self.attribution_request(given, completion, attribution, num_alternatives=num_alternatives)
        return GenerationIterator(self.scheduler, stream)

    @records_call
    def generation_request(
        self,
        given: PromptInput | str | Prompt,
        sampling: Sampling = Sampling(),
        attribution: AttributionSettings | None = None,
        *,
        forced_ids: Sequence[int] = (),
        first_attribution: int | None = None,
        tenant: str | None = None,
    ) -> Request:
        """A request to generate, for the scheduler: see `generate`.

        Prompts that begin alike are read once for all requests of one `tenant`, never for those of two.
        """
        self._check_completion_count("forced_ids", len(forced_ids))
        prompt = self.tokenize(given)
        sampling = self._resolved(sampling, prompt)
        check_token_ids("forced_ids", forced_ids, self.info.vocab_size)
        if len(forced_ids) > (sampling.max_new_tokens or 0):
            raise InvalidRequestError(
                "forced_ids", f"are {len(forced_ids)} tokens; max_new_tokens allows {sampling.max_new_tokens} in all"
            )
        first_step = len(forced_ids)
        if first_attribution is not None:
            if not 0 <= first_attribution <= len(forced_ids):
                raise InvalidRequestError(
                    "first_attribution",
                    f"must lie between 0 and the number of forced tokens, {len(forced_ids)}; was {first_attribution}",
                )
            first_step = len(forced_ids) if attribution is None else first_attribution
        return self._start(prompt, sampling, attribution, forced_ids, first_step, tenant, is_completion=False)

    @records_call
    def attribution_request(
        self,
        given: PromptInput | str | Prompt,
        completion: str | Sequence[int],
        attribution: AttributionSettings | None = None,
        *,
        num_alternatives: int = 0,
        tenant: str | None = None,
    ) -> Request:
        """Make a request to explain a given completion, for the scheduler: see `attribute`; `tenant` as above."""
        self._check_completion_size(completion)
        prompt = self.tokenize(given)
        ids = self._read_completion(prompt, completion)
        sampling = Sampling(max_new_tokens=len(ids), seed=0, num_alternatives=num_alternatives)
        return self._start(prompt, sampling, attribution or AttributionSettings(), ids, 0, tenant, is_completion=True)

    def evaluate(
        self,
        given: PromptInput | str | Prompt,
        settings: EvaluationSettings,
        completion: str | Sequence[int] | None = None,
        sampling: Sampling = Sampling(),
    ) -> Iterator[EvaluationItem | EvaluationSummary]:
        """Tell how faithful explanations are: an item a step, method and metric, and a summary at the end.

        Args:
            given: a raw prompt, or an input of any form.
            settings: what is evaluated, and how.
            completion: what is explained; None for what the model generates. With labels it is the likeliest of them.
            sampling: how that is generated.

        Raises:
            InvalidRequestError: naming the field that is at fault.
            ComputationError: where the model's numbers are not finite.
            BusyError: where other generations hold the memory that this needs.
        """
        return GenerationIterator(
            self.scheduler, self.evaluation_request(given, settings, completion, sampling)
        ).evaluation()

    @records_call
    def evaluation_request(
        self,
        given: PromptInput | str | Prompt,
        settings: EvaluationSettings,
        completion: str | Sequence[int] | None = None,
        sampling: Sampling = Sampling(),
        *,
        tenant: str | None = None,
    ) -> Request:
        """Make a request to evaluate explanations, for the scheduler: see `evaluate`; `tenant` as above."""
        if completion is not None and settings.labels:
            raise InvalidRequestError(
                "labels", "give either labels, of which the likeliest is explained, or a completion"
            )
        if completion is not None:
            self._check_completion_size(completion)
        self._check_completion_length("labels", sum(map(len, settings.labels)))
        prompt = self.tokenize(given)
        if settings.labels:
            sampling = Sampling(max_new_tokens=1, seed=0)
        ids: list[int] = []
        if completion is not None:
            ids = self._read_completion(prompt, completion)
            sampling = Sampling(max_new_tokens=len(ids), seed=0)
        elif any(judged.method is None for judged in settings.methods) and not settings.labels:
            raise InvalidRequestError("scores", "scores of your own need the completion whose tokens they explain")
        sampling = self._resolved(sampling, prompt)
        num_tokens = sampling.max_new_tokens or 0
        self._check_size(settings, prompt, num_tokens)
        settings = replace(
            settings, methods=tuple(self._checked_judged(judged, prompt, num_tokens) for judged in settings.methods)
        )
        allowance = self._allowance(len(prompt.tokens) + num_tokens)
        evaluation = Evaluation(
            self.model.runner,
            prompt,
            settings,
            label_ids=self._label_ids(prompt, settings.labels),
            pad_id=getattr(self.model.tokenizer, "pad_token_id", None),
            explain=partial(self._scores_of, prompt),
            explain_tokens=self._tokens_of,
            pass_budget=allowance,
        )
        evaluation.check_completion(num_tokens)
        return Request(
            self.model,
            RequestSpec(
                prompt,
                sampling,
                None,
                None,
                tuple(ids),
                0,
                is_completion=completion is not None,
                analyse=evaluation.run,
                evaluation=settings,
                pass_budget=allowance,
                tenant=tenant,
            ),
        )

    def _allowance(self, num_tokens: int) -> PassBudget:
        """What a pass over changed texts of at most so many tokens may take."""
        runner = self.model.runner
        fitting = self.method_bytes // max(1, self.model_cost.bytes_of(num_tokens, 1, False))
        most = min(MAX_EVALUATION_PASS_TOKENS[runner.processor], fitting * num_tokens)
        # One layer's keys and values, copied for every sequence; logits, and what becomes of them on the way.
        a_layer = max(shape.bytes_per_token for shape in runner.layer_shapes)
        a_sequence = 2 * num_tokens * a_layer + 8 * self.model_cost.logit_bytes
        return PassBudget(max(1, most), max(1, self.method_bytes // a_sequence))

    @staticmethod
    def _check_size(settings: EvaluationSettings, prompt: Prompt, num_tokens: int) -> None:
        count = settings.texts_per_step * len(settings.steps(num_tokens))
        if count > MAX_EVALUATION_SEQUENCES:
            raise InvalidRequestError(
                "samples",
                f"up to {count:,} changed texts would be run; the limit is {MAX_EVALUATION_SEQUENCES:,}: ask for fewer "
                "methods, pis or samples, or for a larger stride",
            )
        tokens = settings.texts_per_step * (len(prompt.tokens) + num_tokens)
        if tokens > MAX_EVALUATION_STEP_TOKENS:
            raise InvalidRequestError(
                "samples",
                f"a step's changed texts would have {tokens:,} tokens; the limit is {MAX_EVALUATION_STEP_TOKENS:,}: "
                "ask for fewer methods, pis or samples",
            )

    def _checked_judged(self, judged: EvaluatedMethod, prompt: Prompt, num_new_tokens: int) -> EvaluatedMethod:
        """With its switches resolved, where this model can be explained so."""
        if judged.method is None:
            return judged
        method = method_named(judged.method.name)
        if refusal := self.refusal(method):
            raise InvalidRequestError("attribution.method", refusal)
        switches = self._checked(judged.method, prompt)
        if method.explain is not None:
            self._check_work(method, switches, len(prompt.tokens), num_new_tokens)
        return replace(judged, method=switches)

    def _scores_of(
        self, prompt: Prompt, judged: EvaluatedMethod, given: CompletionContext, steps: Sequence[int]
    ) -> Iterator[float | tuple[int, Tensor]]:
        """See `Evaluation`."""
        if judged.method is None:
            raise ValueError("scores of the caller's own are there already")
        method = method_named(judged.method.name)
        return scores_at(
            self._whole_model(given), method, judged.method, normalisation_mask(prompt, judged.method), steps
        )

    @staticmethod
    def _tokens_of(judged: EvaluatedMethod, num_prompt_tokens: int, num_new_tokens: int) -> float:
        """About how many tokens a method reads: a backward pass counts as two."""
        if judged.method is None:
            return 0.0
        cost = method_named(judged.method.name).cost
        forward, backward = (
            passes.count(judged.method, num_prompt_tokens, num_new_tokens) for passes in (cost.forward, cost.backward)
        )
        length = num_new_tokens if cost.completion_only else num_prompt_tokens + num_new_tokens
        return (forward + 2 * backward) * length

    def _label_ids(self, prompt: Prompt, labels: Sequence[str]) -> list[int]:
        """The first token of each label, as it would read after the prompt."""
        ids: list[int] = []
        for index, label in enumerate(labels):
            try:
                first = self._completion_ids(prompt, label, f"labels[{index}]")[0]
                check_embedded(f"labels[{index}]", [first], self.info.vocab_size)
            except InvalidRequestError as error:
                raise InvalidRequestError(f"labels[{index}]", f"{label!r}: {error.description}") from None
            if first in ids:
                raise InvalidRequestError(
                    f"labels[{index}]",
                    f"{label!r} and {labels[ids.index(first)]!r} begin with the same token, so that it tells nothing",
                )
            ids.append(first)
        return ids

    def _start(
        self,
        prompt: Prompt,
        sampling: Sampling,
        attribution: AttributionSettings | None,
        given_ids: Sequence[int],
        first_step: int,
        tenant: str | None,
        *,
        is_completion: bool,
    ) -> Request:
        contrast_id, analyse, scores = None, None, None
        if attribution is not None:
            method = method_named(attribution.method.name)
            self._check_method(method, attribution, is_completion=is_completion)
            switches = self._checked(attribution.method, prompt)
            attribution = replace(attribution, method=switches)
            if attribution.target_token_id is not None:
                self._check_id("attribution.target_token_id", attribution.target_token_id)
            contrast_id = self._contrast_id(attribution, prompt)
            if method.explain is not None:
                self._check_work(method, switches, len(prompt.tokens), len(given_ids))
                analyse = partial(self._analyse, method, switches)
            if method.scores is not None:
                scores = partial(method.scores, switches)
        return Request(
            self.model,
            RequestSpec(
                prompt,
                sampling,
                attribution,
                contrast_id,
                tuple(given_ids),
                first_step,
                is_completion,
                analyse,
                scores,
                tenant=tenant,
            ),
        )

    def _analyse(self, method: Method, switches: Switches, given: CompletionContext) -> ScoreStream:
        """A method's work on a completion."""
        return post_hoc_scores(self._whole_model(given), method, switches)

    def _whole_model(self, given: CompletionContext) -> CompletionModel:
        model = self.model
        return CompletionModel(model.runner, model.family, given, self.method_bytes, self.model_cost.bytes_of)

    def _check_method(self, method: Method, attribution: AttributionSettings, *, is_completion: bool) -> None:
        if not (is_completion or method.streams):
            streaming = ", ".join(name for name, row in METHODS.items() if row.streams)
            raise InvalidRequestError(
                "attribution.method",
                f"{method.name} explains a completion that exists: use Attribute (`gradellm attribute`). "
                f"While text is generated, {streaming} explain it",
            )
        if refusal := self.refusal(method):
            raise InvalidRequestError("attribution.method", refusal)
        if not method.has_target:
            for field in ("target_token_id", "contrast"):
                if getattr(attribution, field) is not None:
                    raise InvalidRequestError(f"attribution.{field}", f"has no meaning for {method.name}")

    def _check_work(self, method: Method, switches: Switches, num_prompt_tokens: int, num_new_tokens: int) -> None:
        """Refuse what a method after the fact cannot do, or has not the memory for."""
        baseline_ids = getattr(switches, "baseline_ids", ())
        check_token_ids("attribution.baseline_ids", baseline_ids, self.info.vocab_size)
        check_baseline(baseline_ids, num_prompt_tokens)
        check_memory(method, switches, self.model_cost, num_prompt_tokens, num_new_tokens, self.method_bytes)

    def _checked(self, switches: Switches, prompt: Prompt) -> Switches:
        """The switches, where model and prompt have what they speak of; layers as explicit indexes."""
        if isinstance(switches, GradEllm) and switches.normalise_over is NormaliseOver.USER:
            prompt.check_user_text("attribution.normalise_over")
        if isinstance(switches, GradEllm) and switches.rotary is Rotary.UNROTATED and not self.model.family.rotary:
            raise InvalidRequestError(
                "attribution.rotary",
                f"unrotated is not defined for the family {self.info.family}: "
                "not all of its layers have a rotary embedding",
            )
        return switches.resolved(self.info.num_layers)

    def _contrast_id(self, attribution: AttributionSettings, prompt: Prompt) -> int | ContrastText | None:
        contrast = attribution.contrast
        if contrast is None or contrast.runner_up:
            return None
        if contrast.token_id is not None:
            self._check_id("attribution.contrast.token_id", contrast.token_id)
            return contrast.token_id
        return self._contrast_text(contrast.text or "", prompt)

    def _contrast_text(self, text: str, prompt: Prompt) -> int | ContrastText:
        """The token that a text is: as it stands and, where it begins with no space, after one.

        Raises:
            InvalidRequestError: where it is no single token, naming those that it is.
        """
        field = "attribution.contrast.text"
        longest = self.model.encoder.longest_token
        if len(text) > longest:
            raise InvalidRequestError(
                field,
                f"{len(text):,} characters; the limit is {longest}, which the longest token has: a contrast is one",
            )
        check_text(field, text)
        variants = [text] if text[:1].isspace() else [text, f" {text}"]
        read: list[list[int] | None] = []
        for variant in variants:
            try:
                read.append(self._completion_ids(prompt, variant, field))
            except InvalidRequestError:
                if not text or len(variants) == 1:
                    raise
                read.append(None)
        single = [ids[0] if ids and len(ids) == 1 else None for ids in read]
        if all(token_id is None for token_id in single):
            ids = next((ids for ids in read if ids), [])
            pieces = ", ".join(f"{token_id} {self.model.encoder.decode_alone(token_id)!r}" for token_id in ids[:8])
            raise InvalidRequestError(
                field,
                f"{text[:60]!r} is {len(ids)} tokens ({pieces}), and a contrast is one: give one of them as token_id",
            )
        known = [token_id for token_id in single if token_id is not None]
        check_embedded(field, known, self.info.vocab_size)
        if len(set(known)) == 1:
            return known[0]
        return ContrastText(plain=known[0], spaced=known[1])

    def _check_id(self, field: str, token_id: int) -> None:
        if not 0 <= token_id < self.info.vocab_size:
            raise InvalidRequestError(
                field, f"{token_id} is not a token id; the vocabulary has ids 0 to {self.info.vocab_size - 1}"
            )

    def _resolved(self, sampling: Sampling, prompt: Prompt) -> Sampling:
        """Sampling with its seed and its length said."""
        length = sampling.max_new_tokens
        if length is None:
            length = min(DEFAULT_NEW_TOKENS, self.max_new_tokens, self.context_tokens - len(prompt.tokens))
        else:
            self._check_length("max_new_tokens", prompt, length)
        return replace(
            sampling,
            max_new_tokens=length,
            seed=random_seed() if sampling.seed is None else sampling.seed,
        )

    def _check_length(self, field: str, prompt: Prompt, length: int) -> None:
        room = min(self.max_new_tokens, self.context_tokens - len(prompt.tokens))
        if length > room:
            raise InvalidRequestError(
                field,
                f"{length} tokens after a prompt of {len(prompt.tokens)}; at most {room} are possible "
                f"(context {self.context_tokens}, completions up to {self.max_new_tokens})",
            )

    def _check_completion_count(self, field: str, count: int) -> None:
        """Refuse a completion by its number of tokens, before any of them is looked at."""
        if count > self.max_new_tokens:
            raise InvalidRequestError(
                field, f"{count:,} tokens; the limit of a completion is {self.max_new_tokens:,}: send fewer"
            )

    def _check_completion_length(self, field: str, num_characters: int) -> None:
        """Refuse text that is longer than any completion, before it is tokenised."""
        limit = self.max_new_tokens * self.model.encoder.longest_token
        if num_characters > limit:
            raise InvalidRequestError(
                field,
                f"{num_characters:,} characters; the limit is {limit:,}, which is {self.max_new_tokens:,} tokens of "
                "the longest token's characters each: shorten the text",
            )

    def _check_completion_size(self, completion: str | Sequence[int]) -> None:
        if isinstance(completion, str):
            self._check_completion_length("completion", len(completion))
        else:
            self._check_completion_count("completion_ids", len(completion))

    def _read_completion(self, prompt: Prompt, completion: str | Sequence[int]) -> list[int]:
        """A given completion's tokens, checked."""
        if isinstance(completion, str):
            ids = self._completion_ids(prompt, completion, "completion")
            check_embedded("completion", ids, self.info.vocab_size)
        else:
            ids = list(completion)
            check_token_ids("completion_ids", ids, self.info.vocab_size)
        if not ids:
            raise InvalidRequestError("completion", "must have at least one token")
        self._check_length("completion", prompt, len(ids))
        return ids

    def _completion_ids(self, prompt: Prompt, completion: str, field: str) -> list[int]:
        """A completion's tokens, as they read after the prompt.

        The end of the prompt and the completion are tokenised as one text: on its own, a completion's first token may
        be another. Where a token would straddle the boundary, the completion is tokenised alone. What comes must read
        as it was given.
        """
        check_text(field, completion)
        if not completion:
            raise InvalidRequestError(field, "must not be empty")
        encoder = self.model.encoder
        limit = self.max_new_tokens
        alone = encode(field, encoder, completion, add_special_tokens=False, max_tokens=limit).ids.tolist()
        candidates: list[list[int]] = [alone]
        for tail in prompt_tails(prompt):
            text = tail.text + completion
            joint = encode(field, encoder, text, add_special_tokens=tail.add_special_tokens).ids.tolist()
            own = encode(field, encoder, tail.text, add_special_tokens=tail.add_special_tokens).ids.tolist()
            if own != tail.ids:
                continue  # this end of the prompt does not read alone as it does in the prompt: take a longer one
            if joint[: len(tail.ids)] == tail.ids:
                candidates.insert(0, joint[len(tail.ids) :])
            break
        before_ids = prompt.ids[-CONTEXT_TOKENS:]
        before = encoder.decode(before_ids, skip_special_tokens=False)
        for ids in candidates:
            if encoder.decode([*before_ids, *ids], skip_special_tokens=False) == before + completion:
                return ids
        instead = "send completion_ids instead" if field == "completion" else "choose another text"
        if len(candidates) == 1:
            raise InvalidRequestError(field, f"cannot be told apart from the prompt's last token; {instead}")
        read = encoder.decode([*before_ids, *candidates[0]], skip_special_tokens=False)[len(before) :]
        raise InvalidRequestError(field, f"its tokens read {read[:60]!r}, which is not what was given; {instead}")


def _scheduler(model: LoadedModel, max_running: int) -> Scheduler:
    ranks = model.runner.ranks
    if ranks is not None and ranks.is_rank0:
        return RankZeroScheduler(model.runner, ranks, max_running=max_running)
    return Scheduler(model.runner, max_running=max_running)


def _num_places(model: LoadedModel, max_running: int, kv_bytes: int | None) -> int:
    """Tokens that the key-value memory is made for.

    Raises:
        ModelLoadError: where there is no memory for the shortest request.
    """
    if max_running < 1:
        raise ModelLoadError(f"at least 1 request must be able to run, {max_running} were asked for")
    per_token = model.runner.bytes_per_token
    if kv_bytes is None:
        kv_bytes = int(KV_SHARE * free_bytes(model.runner.device))
        # More than this has no use: every running request at its longest, and as much again of kept prefixes.
        kv_bytes = min(kv_bytes, 2 * max_running * model.info.context_tokens * per_token)
    if kv_bytes < MIN_PLACES * per_token:
        raise ModelLoadError(
            f"{kv_bytes:,} bytes for keys and values are too few: a token takes {per_token:,}, "
            f"and {MIN_PLACES} must fit"
        )
    return kv_bytes // per_token


def free_bytes(device: torch.device) -> int:
    """Memory that is free where a model computes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_bytes()
