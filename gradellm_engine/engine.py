"""The engine: a loaded model that tokenises, generates and explains.

    engine = Engine.load("path/or/hub-id")
    for step in engine.generate("Once upon a time", Sampling(max_new_tokens=32), AttributionSettings()):
        print(step.text, step.attribution.scores)

An engine belongs to one thread. Several generations may be open, and are iterated in turn. A server builds requests
(`generation_request` and its siblings) and submits them to the scheduler, which batches them into shared passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gradellm_engine.core.following.given_tokens import FollowSettings
from gradellm_engine.core.following.request import FollowedRequest
from gradellm_engine.core.generation import GenerationIterator
from gradellm_engine.core.lockstep import FollowerLoop, RankZeroScheduler
from gradellm_engine.core.memory_sizing import MemoryPlan, free_bytes, kv_cache_tokens, post_hoc_bytes
from gradellm_engine.core.post_hoc_runner import PostHocRunner
from gradellm_engine.core.request import Request
from gradellm_engine.core.request_builder import AnyPrompt, RequestBuilder
from gradellm_engine.core.request_limits import RequestLimits
from gradellm_engine.core.scheduler import DEFAULT_MAX_FOLLOWED, Scheduler
from gradellm_engine.core.scheduling.pass_timings import DEFAULT_MAX_GAP_SECONDS
from gradellm_engine.distributed.process_group import ProcessGroup
from gradellm_engine.errors import ModelLoadError
from gradellm_engine.faithfulness.results import EvaluationItem, EvaluationSummary
from gradellm_engine.faithfulness.settings import EvaluationSettings
from gradellm_engine.methods.base import Method
from gradellm_engine.methods.cost_model import Estimate, ModelCost
from gradellm_engine.model.generation_config import GenerationConfigSource, generation_defaults
from gradellm_engine.model.loader import LoadedModel, ModelInfo, Progress, load_model
from gradellm_engine.model.quantization import Quantization
from gradellm_engine.params import AttributionSettings, Switches
from gradellm_engine.presets import concrete_preset
from gradellm_engine.sampling_params import Sampling
from gradellm_engine.structured.settings import StructuredOutput
from gradellm_engine.tokenization.prompt import Prompt
from gradellm_engine.utils.memory import resident_bytes, return_unused
from gradellm_engine.utils.threads import available_cpus, use_threads

DEFAULT_MAX_NEW_TOKENS = 4096
DEFAULT_MAX_RUNNING = 16


class Engine:
    """One decoder-only model that explains what it generates.

    Attributes:
        model: the loaded model.
        info: facts about the model.
        context_tokens: limit of prompt and completion together: the model's context, or what the KV cache holds.
        max_prompt_tokens: limit of a prompt, which leaves room for one new token.
        max_new_tokens: limit of a completion.
        prompt_limits: limits of an input, which are checked before it is tokenised.
        kv_bytes: size of the KV cache.
        kv_tokens: tokens that it holds.
        post_hoc: runs methods over whole completions.
        request_builder: builds requests.
        generation_defaults: the values that a server's requests have where they say nothing.
        scheduler: runs requests.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        max_running: int = DEFAULT_MAX_RUNNING,
        max_followed: int = DEFAULT_MAX_FOLLOWED,
        max_gap: float = DEFAULT_MAX_GAP_SECONDS,
        memory_bytes: int | None = None,
        kv_bytes: int | None = None,
        method_bytes: int | None = None,
        use_graphs: bool = True,
        generation_config: GenerationConfigSource = GenerationConfigSource.AUTO,
    ) -> None:
        self.model = model
        self.generation_defaults = generation_defaults(model.generation_config, generation_config)
        self.info: ModelInfo = model.info
        ranks = model.runner.ranks
        free = free_bytes(model.runner.device, memory_bytes)
        kv_tokens = kv_cache_tokens(model, max_running, kv_bytes, free, memory_bytes)
        if ranks is not None:
            free, kv_tokens = ranks.all_reduce_min([free, kv_tokens])
        model.runner.allocate_pool(kv_tokens)
        if use_graphs:
            model.runner.use_graphs()
        self.kv_tokens = kv_tokens
        self.kv_bytes = kv_tokens * model.runner.bytes_per_token
        limits = RequestLimits.of(
            model.encoder,
            min(model.info.context_tokens, kv_tokens),
            max_new_tokens,
            self.generation_defaults.max_new_tokens,
        )
        self.context_tokens = limits.context_tokens
        self.max_prompt_tokens = limits.prompt.tokens
        self.max_new_tokens = limits.max_new_tokens
        self.prompt_limits = limits.prompt
        model.encoder.prepare()
        self.scheduler = _scheduler(model, max_running, max_followed, max_gap)
        self.post_hoc = PostHocRunner(model, post_hoc_bytes(method_bytes, free - self.kv_bytes))
        self._memory_bytes = memory_bytes
        self.request_builder = RequestBuilder(model, limits, self.post_hoc)
        if ranks is not None:
            self._synchronise(ranks)

    def _synchronise(self, ranks: ProcessGroup) -> None:
        """Check that all ranks have the same limits, and share rank 0's measurements."""
        scheduler = self.scheduler
        limits = (
            f"--max-running {scheduler.max_running}, --max-followed {scheduler.max_followed}, "
            f"--max-gap-ms {1000 * scheduler.max_gap:g}, "
            f"--max-new-tokens {self.max_new_tokens}, method bytes {self.method_bytes}"
        )
        ranks.assert_equal({"limits": f"{limits}, a context of {self.context_tokens}"})
        # Measured while all ranks are here: the passes that measure it are collective.
        self.post_hoc.model_cost = ranks.broadcast_object(self.model_cost)
        ranks.use_pass_timeout()

    @property
    def devices(self) -> list[str]:
        """The devices of the layers that this process holds."""
        return sorted({str(shape.device) for shape in self.model.runner.layer_shapes})

    @property
    def uses_graphs(self) -> bool:
        """Whether decode steps are captured as CUDA graphs at first use, and replayed."""
        return self.model.runner.cuda_graphs is not None

    @property
    def method_bytes(self) -> int:
        """Memory that methods over whole completions may take."""
        return self.post_hoc.memory_bytes

    @property
    def memory(self) -> MemoryPlan:
        """What the memory of this process is for; on one rank of several, of this rank."""
        runner = self.model.runner
        return MemoryPlan(
            limit=self._memory_bytes,
            weights=runner.weight_bytes,
            packed_weights=runner.packed_bytes,
            kv_cache=self.kv_bytes,
            methods=self.method_bytes,
            resident=resident_bytes(),
        )

    @staticmethod
    def return_unused_memory() -> None:
        """Give memory that no request needs any more back to the system; takes milliseconds."""
        return_unused()

    def commit_memory(self) -> bool:
        """While idle: have the system commit a part of the memory that coming requests use; whether more is left."""
        runner = self.model.runner
        return runner.processor == "cpu" and runner.pool.commit_ahead()

    @property
    def model_cost(self) -> ModelCost:
        """Memory and time of this model's passes over whole sequences; measured at first use."""
        return self.post_hoc.model_cost

    def measure_cost(self) -> None:
        """Measure `model_cost` now: that runs passes, on the thread that calls this."""
        _ = self.model_cost

    def prepare_structured_output(self) -> None:
        """Read the tokenizer for structured output now, which takes seconds for a large vocabulary."""
        self.request_builder.grammars.prepare()

    def estimate(self, switches: Switches, num_prompt_tokens: int, num_new_tokens: int) -> Estimate:
        """Passes, seconds and bytes that explaining a completion would take."""
        return self.post_hoc.estimate(switches, num_prompt_tokens, num_new_tokens)

    def concrete_preset(self, name: str) -> str:
        """A preset's own name; for `recommended` that of the preset which it stands for, for this model."""
        return concrete_preset(name, has_gates=self.model.family.gates is not None)

    def refusal(self, method: Method) -> str:
        """Why this model cannot be explained by a method; empty where it can."""
        return self.request_builder.resolver.refusal(method)

    def run_follower(self) -> None:
        """On every rank but 0: run rank 0's requests in lockstep until it calls `stop_followers`.

        Rank 0 must run a scheduler step at least once a minute, as a server does, or it is taken for lost.

        Raises:
            GroupLostError: where the ranks are no longer in lockstep.
        """
        ranks = self.model.runner.ranks
        if ranks is None or ranks.is_rank0:
            raise RuntimeError("only a rank other than 0 can run as a follower")
        FollowerLoop(self.scheduler, self.request_builder.rebuild, ranks).run()

    def stop_followers(self) -> None:
        """On rank 0: have the other ranks return from `run_follower`. Nothing on a single process."""
        if isinstance(self.scheduler, RankZeroScheduler):
            self.scheduler.stop_followers()

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
        max_followed: int = DEFAULT_MAX_FOLLOWED,
        max_gap: float = DEFAULT_MAX_GAP_SECONDS,
        memory_bytes: int | None = None,
        kv_bytes: int | None = None,
        method_bytes: int | None = None,
        threads: int | None = None,
        use_graphs: bool = True,
        batch_invariant: bool = False,
        generation_config: GenerationConfigSource = GenerationConfigSource.AUTO,
        progress: Progress = lambda stage: None,
    ) -> Engine:
        """Load a model by local path or hub id, the demo model by default.

        See `gradellm_engine.model.loader.load_model`. Up to `max_running` requests run at a time, and `max_followed`
        that follow another engine, with completions of up to `max_new_tokens`; prompts are read so that running
        requests get a token at least every `max_gap` seconds. The process plans to take `memory_bytes` in all, by
        default what there is: the KV cache `kv_bytes`, methods over whole completions `method_bytes`. `threads`: of the
        CPU, by default all that may run. All ranks but 0 call `run_follower`. `use_graphs`: replay decode steps as CUDA
        graphs, or launch graphs and traces. `generation_config`: where `generation_defaults` are from.
        """
        _check_counts(threads, max_new_tokens)
        use_threads(threads if threads or ranks is None else ranks.cpus(available_cpus()))
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
            memory_bytes=memory_bytes,
            progress=progress,
        )
        return cls(
            model,
            max_new_tokens=max_new_tokens,
            max_running=max_running,
            max_followed=max_followed,
            max_gap=max_gap,
            memory_bytes=memory_bytes,
            kv_bytes=kv_bytes,
            method_bytes=method_bytes,
            use_graphs=use_graphs,
            generation_config=generation_config,
        )

    def tokenize(self, prompt: AnyPrompt) -> Prompt:
        """Render and tokenise an input as `generate` does; a `Prompt` is returned as it is.

        Raises:
            InvalidRequestError: naming the field that is at fault.
        """
        return self.request_builder.tokenize(prompt)

    def generate(
        self,
        prompt: AnyPrompt,
        sampling: Sampling = Sampling(),
        attribution: AttributionSettings | None = None,
        *,
        forced_ids: Sequence[int] = (),
        first_attribution: int | None = None,
        structured_output: StructuredOutput | None = None,
    ) -> GenerationIterator:
        """Generate a completion, with every token explained if `attribution` is given.

        Args:
            prompt: a raw prompt, or an input of any form.
            sampling: how tokens are sampled.
            attribution: what to explain; None for tokens alone.
            forced_ids: tokens that the completion begins with, to resume a generation after them.
            first_attribution: index of the first completion token to explain, if it is one of `forced_ids`.
            structured_output: what the completion has to be; None for any text.

        Raises:
            InvalidRequestError: naming the field that is at fault.
        """
        request = self.generation_request(
            prompt,
            sampling,
            attribution,
            forced_ids=forced_ids,
            first_attribution=first_attribution,
            structured_output=structured_output,
        )
        return GenerationIterator(self.scheduler, request)

    def attribute(
        self,
        prompt: AnyPrompt,
        completion: str | Sequence[int],
        attribution: AttributionSettings | None = None,
        *,
        num_alternatives: int = 0,
    ) -> GenerationIterator:
        """Explain a given completion, as text or as token ids.

        Raises:
            InvalidRequestError: naming the field that is at fault.
        """
        request = self.attribution_request(prompt, completion, attribution, num_alternatives=num_alternatives)
        return GenerationIterator(self.scheduler, request)

    def evaluate(
        self,
        prompt: AnyPrompt,
        settings: EvaluationSettings,
        completion: str | Sequence[int] | None = None,
        sampling: Sampling = Sampling(),
    ) -> Iterator[EvaluationItem | EvaluationSummary]:
        """Measure how faithful explanations are; yields an item a step, method and metric, and a summary at the end.

        Args:
            prompt: a raw prompt, or an input of any form.
            settings: what is evaluated, and how.
            completion: what is explained; by default what the model generates, or with labels the likeliest of them.
            sampling: how the completion is generated.

        Raises:
            InvalidRequestError: naming the field that is at fault.
            ComputationError: where the model's numbers are not finite.
            BusyError: where other requests hold the KV memory that this one needs.
        """
        request = self.evaluation_request(prompt, settings, completion, sampling)
        return GenerationIterator(self.scheduler, request).evaluation()

    def generation_request(
        self,
        prompt: AnyPrompt,
        sampling: Sampling = Sampling(),
        attribution: AttributionSettings | None = None,
        *,
        forced_ids: Sequence[int] = (),
        first_attribution: int | None = None,
        structured_output: StructuredOutput | None = None,
        tenant: str | None = None,
    ) -> Request:
        """A request to generate, for the scheduler; see `generate`.

        Requests of one `tenant` share the keys and values of common prefixes; those of different tenants never do.
        """
        return self.request_builder.generation(
            prompt,
            sampling,
            attribution,
            forced_ids=forced_ids,
            first_attribution=first_attribution,
            structured_output=structured_output,
            tenant=tenant,
        )

    def attribution_request(
        self,
        prompt: AnyPrompt,
        completion: str | Sequence[int],
        attribution: AttributionSettings | None = None,
        *,
        num_alternatives: int = 0,
        tenant: str | None = None,
    ) -> Request:
        """A request to explain a given completion, for the scheduler; see `attribute` and `generation_request`."""
        return self.request_builder.attribution(
            prompt, completion, attribution, num_alternatives=num_alternatives, tenant=tenant
        )

    def follow_request(
        self,
        prompt: AnyPrompt,
        attribution: AttributionSettings | None = None,
        settings: FollowSettings = FollowSettings(),
        *,
        tenant: str | None = None,
    ) -> FollowedRequest:
        """A request to explain a completion while another engine writes it, for the scheduler.

        Submit it; then give the scheduler the tokens as they come (`append`), have it explain what there is (`flush`),
        and end it (`finish`), each between two steps. See `generation_request` for `tenant`.

        Raises:
            InvalidRequestError: naming the field that is at fault.
        """
        return self.request_builder.following(prompt, attribution, settings, tenant=tenant)

    def evaluation_request(
        self,
        prompt: AnyPrompt,
        settings: EvaluationSettings,
        completion: str | Sequence[int] | None = None,
        sampling: Sampling = Sampling(),
        *,
        tenant: str | None = None,
    ) -> Request:
        """A request to evaluate explanations, for the scheduler; see `evaluate` and `generation_request`."""
        return self.request_builder.evaluation(prompt, settings, completion, sampling, tenant=tenant)


def _check_counts(threads: int | None, max_new_tokens: int) -> None:
    """Refuse counts of zero.

    Raises:
        ModelLoadError: naming the count.
    """
    if threads is not None and threads < 1:
        raise ModelLoadError(f"threads is {threads}; at least 1 thread is needed")
    if max_new_tokens < 1:
        raise ModelLoadError(f"max_new_tokens is {max_new_tokens}; a completion needs at least 1 token")


def _scheduler(model: LoadedModel, max_running: int, max_followed: int, max_gap: float) -> Scheduler:
    ranks = model.runner.ranks
    if ranks is not None and ranks.is_rank0:
        return RankZeroScheduler(
            model.runner, ranks, max_running=max_running, max_followed=max_followed, max_gap=max_gap
        )
    return Scheduler(model.runner, max_running=max_running, max_followed=max_followed, max_gap=max_gap)
