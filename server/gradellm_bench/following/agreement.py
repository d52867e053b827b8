"""How far the log-probabilities of another engine agree with ours, by its number format, and with other weights.

    python -m gradellm_bench.following.agreement --model PATH

The other engine is Transformers' `generate` with the model's weights in each format: computed in it (float32, bfloat16,
float16), or rounded to it (fp8: e4m3; int8: a scale for each row; int4: a scale for each 128 columns of a row) and
computed in bfloat16. With `--noise` the weights of one layer have noise of that many of their standard deviations: a
checkpoint that differs; `--save DIR` writes it, for another engine to serve. With `--url` the other engine is a server
of OpenAI's API that returns token ids, such as vLLM, and `--dtypes` says what it computes with. Its tokens are followed
by our engine.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from itertools import count, islice
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from gradellm.following.openai_logprobs import told_logprobs
from gradellm.following.written import WrittenToken, written_tokens
from gradellm_bench.study.document_chats import document_chat
from gradellm_engine import (
    MIN_COMPARED_TOKENS,
    Agreement,
    AttributionSettings,
    ChunkAgreement,
    Engine,
    FollowSettings,
    GivenLogprobs,
    Message,
    NumberFormat,
    Prompt,
    PromptInput,
    Verdict,
    method_named,
)

NUM_TOKENS = 32
COMPUTED = {
    NumberFormat.FLOAT32: torch.float32,
    NumberFormat.FLOAT16: torch.float16,
}
GROUP = 128
SERVER_SECONDS = 120.0


Written = tuple[list[int], list[GivenLogprobs]]
"""Token ids, with the engine's log-probabilities at each."""


@dataclass(frozen=True)
class Judged:
    """One prompt's agreement on the tokens that the other engine wrote, and the verdict."""

    agreement: Agreement
    verdict: Verdict


def rounded(weight: Tensor, number_format: NumberFormat) -> Tensor:
    """A weight [N, K], rounded to a format; the formats that are computed with leave it as it is."""
    match number_format:
        case NumberFormat.FP8:
            scale = weight.abs().max() / torch.finfo(torch.float8_e4m3fn).max
            return (weight / scale).to(torch.float8_e4m3fn).to(weight.dtype) * scale
        case NumberFormat.INT8:
            scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
            return (weight / scale).round() * scale
        case NumberFormat.INT4:
            group = GROUP if weight.shape[1] % GROUP == 0 else weight.shape[1]
            groups = weight.reshape(weight.shape[0], -1, group)
            scale = groups.abs().amax(2, keepdim=True).clamp(min=1e-12) / 7
            return ((groups / scale).round().clamp(-8, 7) * scale).reshape(weight.shape)
        case _:
            return weight


def with_noise(weight: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A weight with normal noise of `share` of its standard deviation."""
    return weight + share * weight.std() * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)


def other_engine(path: str, number_format: NumberFormat, noise: float, layer: int) -> PreTrainedModel:
    """The model in a format, with noise in one decoder layer where `noise` is above 0."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        if noise:
            for module in model.get_decoder().layers[layer].modules():
                if isinstance(module, nn.Linear):
                    module.weight.copy_(with_noise(module.weight, noise, generator))
        for module in model.get_decoder().modules():
            if isinstance(module, nn.Linear):
                module.weight.copy_(rounded(module.weight, number_format))
    return model.to(COMPUTED.get(number_format, torch.bfloat16))


@torch.inference_mode()
def write(model: PreTrainedModel, num_alternatives: int, ids: list[int], seed: int) -> Written:
    """What the other engine writes after a prompt, sampled, with log-probabilities."""
    torch.manual_seed(seed)
    prompt = torch.tensor([ids])
    output = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=NUM_TOKENS,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        repetition_penalty=1.0,
        return_dict_in_generate=True,
        output_logits=True,
        pad_token_id=0,
    )
    written = output.sequences[0, len(ids) :].tolist()
    rows = [logits[0].float().log_softmax(-1) for logits in output.logits]
    chosen = [row[token].item() for row, token in zip(rows, written, strict=True)]
    top = [row.topk(num_alternatives + 1).values.tolist() for row in rows]
    return _given(written_tokens(written, chosen, top), num_alternatives)


def _given(tokens: list[WrittenToken], num_alternatives: int) -> Written:
    logprobs = [GivenLogprobs(token.logprob, token.alternatives[:num_alternatives]) for token in tokens]
    return [token.id for token in tokens], logprobs


def write_by_server(url: str, num_alternatives: int, ids: list[int], seed: int) -> Written:
    """What a server of OpenAI's API writes after a prompt, sampled, with log-probabilities."""
    body = {
        "model": _model_name(url),
        "prompt": ids,
        "max_tokens": NUM_TOKENS,
        "temperature": 1.0,
        "seed": seed,
        "logprobs": num_alternatives + 1,
        "return_token_ids": True,
    }
    request = urllib.request.Request(  # noqa: S310 (the operator's own URL)
        f"{url}/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=SERVER_SECONDS) as response:  # noqa: S310
        (choice,) = json.load(response)["choices"]
    written = choice["token_ids"]
    return _given(written_tokens(written, *told_logprobs(choice, len(written))), num_alternatives)


@cache
def _model_name(url: str) -> str:
    with urllib.request.urlopen(f"{url}/models", timeout=SERVER_SECONDS) as response:  # noqa: S310
        return str(json.load(response)["data"][0]["id"])


def judge(engine: Engine, prompt: Prompt, written: Written, declared: NumberFormat) -> Judged:
    """Follow what the other engine wrote."""
    settings = FollowSettings(upstream_dtype=declared)
    request = engine.follow_request(prompt, AttributionSettings(method_named("random").switches()), settings)
    engine.scheduler.submit(request)
    engine.scheduler.append(request, *written)
    engine.scheduler.finish(request)
    events = []
    while not request.is_closed:
        for _ in engine.scheduler.step():
            events += request.take_events()
    if request.error is not None:
        raise request.error
    last = [event for event in [*events, *request.take_events()] if isinstance(event, ChunkAgreement)][-1]
    return Judged(last.total, last.verdict)


def prompts(engine: Engine, generator: str, first_seed: int) -> Iterator[tuple[int, Prompt]]:
    """Seeds and generated prompts: questions about documents, as chats where the model has a template."""
    for seed in count(first_seed):
        text = document_chat(generator, seed, ("one", "knowledge")[seed % 2]).text
        chat = PromptInput(messages=(Message("user", text),))
        yield (
            seed,
            engine.tokenize(chat if engine.model.tokenizer.chat_template else PromptInput(prompt=f"{text}\nAnswer:")),
        )


def table(rows: Mapping[str, list[Judged]]) -> str:
    """A line for each kind: quantiles of the noise, and verdicts."""
    lines = [
        "| numbers | prompts | noise: median | 90 % | largest | verdicts |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for name, judged in rows.items():
        noise = sorted(each.agreement.noise for each in judged)
        verdicts = Counter(each.verdict.value for each in judged)
        quantiles = [noise[len(noise) // 2], noise[int(0.9 * (len(noise) - 1))], noise[-1]]
        counted = ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items()))
        lines.append(f"| {name} | {len(noise)} | {' | '.join(f'{q:.4f}' for q in quantiles)} | {counted} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Print the table of a model."""
    parser = argparse.ArgumentParser(
        prog="python -m gradellm_bench.following.agreement", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--model", required=True, metavar="PATH", help="checkpoint folder")
    parser.add_argument("--dtypes", nargs="+", type=NumberFormat, default=list(NumberFormat), metavar="D")
    parser.add_argument("--prompts", type=int, default=50, metavar="N", help="default: %(default)s")
    parser.add_argument("--first-seed", type=int, default=0, metavar="N", help="of the prompts (default: %(default)s)")
    parser.add_argument("--generator", choices=("boxes", "notes"), default="notes", help="default: %(default)s")
    parser.add_argument("--noise", type=float, default=0.05, metavar="SHARE", help="default: %(default)s")
    parser.add_argument("--layer", type=int, default=15, metavar="N", help="with the noise (default: %(default)s)")
    parser.add_argument(
        "--alternatives", type=int, default=7, metavar="N", help="of each token, compared too (default: %(default)s)"
    )
    parser.add_argument("--engine-dtype", default="float32", metavar="D", help="of our engine (default: %(default)s)")
    parser.add_argument("--url", metavar="URL", help="of a server of OpenAI's API, such as http://localhost:8000/v1")
    parser.add_argument("--save", type=Path, metavar="DIR", help="write the checkpoint with noise, and measure nothing")
    options = parser.parse_args(arguments)
    if options.save is not None:
        other_engine(options.model, NumberFormat.FLOAT32, options.noise, options.layer).save_pretrained(options.save)
        AutoTokenizer.from_pretrained(options.model).save_pretrained(options.save)
        return 0
    engine = Engine.load(options.model, dtype=options.engine_dtype, max_running=1)
    rows = dict(measure(engine, options))
    print(table(rows))
    return 0


def measure(engine: Engine, options: argparse.Namespace) -> Iterator[tuple[str, list[Judged]]]:
    """The judged prompts of each kind of other engine, with its name."""
    first = options.first_seed

    def judged(number_format: NumberFormat, write_one: Callable[[list[int], int], Written]) -> list[Judged]:
        """Of answers that are long enough for a verdict."""
        asked = islice(prompts(engine, options.generator, first), 10 * options.prompts)
        answers = ((prompt, write_one(prompt.ids, seed)) for seed, prompt in asked)
        long = ((prompt, written) for prompt, written in answers if len(written[0]) >= MIN_COMPARED_TOKENS)
        return [judge(engine, *answer, number_format) for answer in islice(long, options.prompts)]

    for number_format in options.dtypes:
        if options.url is not None:
            name = f"{_model_name(options.url)} in {number_format}"
            yield name, judged(number_format, partial(write_by_server, options.url, options.alternatives))
            continue
        for noise in (0.0, options.noise):
            model = other_engine(options.model, number_format, noise, options.layer)
            name = f"{number_format}{f', noise of {noise:g}' if noise else ''}"
            yield name, judged(number_format, partial(write, model, options.alternatives))


if __name__ == "__main__":
    sys.exit(main())
