"""All attribution methods: a row each, with description and cost.

A row with `explain` is a post-hoc method, one with `scores` runs no model, and one with neither is an in-pass method,
whose functions have a row in `gradellm_engine.attribution.in_pass`.
"""

from __future__ import annotations

from gradellm_engine.attribution.attention_weights import Attention
from gradellm_engine.attribution.grad_sam import GradSam
from gradellm_engine.errors import InvalidRequestError
from gradellm_engine.methods import attention_rollout, random
from gradellm_engine.methods.base import Cost, Method, Passes
from gradellm_engine.methods.gradients import (
    deeplift,
    gradient_shap,
    input_x_gradient,
    integrated_gradients,
    layer_gradient_x_activation,
    relevance,
    saliency,
)
from gradellm_engine.methods.perturbation import lime, occlusion, reagent, value_zeroing
from gradellm_engine.params import GradEllm

_ONCE = Passes(((1, ""),))
_IN_PASS = Cost(_ONCE, _ONCE, completion_only=True)
_GRADIENT_PER_STEP = Cost(_ONCE, Passes(((1, "n"),)))

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            GradEllm,
            "Grad-ELLM: the gradient of the token's logit by each layer's attention output, weighted by query-key "
            "similarity; one backward pass through one token",
            _IN_PASS,
        ),
        Method(
            Attention,
            "the last layer's attention weights, mean over heads",
            _IN_PASS,
            has_target=False,
        ),
        Method(
            GradSam,
            "Grad-SAM: attention weights times the positive part of the logit's gradient by them, mean over heads and "
            "layers",
            _IN_PASS,
        ),
        Method(
            random.Random,
            "uniform random scores, the reference for all other methods",
            Cost(Passes()),
            scores=random.scores,
            has_target=False,
        ),
        Method(
            saliency.Saliency,
            "the gradient of the target by each token's embedding",
            _GRADIENT_PER_STEP,
            saliency.explain,
        ),
        Method(
            input_x_gradient.InputXGradient,
            "each token's embedding times the gradient of the target by it",
            _GRADIENT_PER_STEP,
            input_x_gradient.explain,
        ),
        Method(
            integrated_gradients.IntegratedGradients,
            "the gradient integrated along the path from a baseline to the prompt, times their difference",
            Cost(Passes((("steps", ""), (2, ""))), Passes((("steps", "n"),))),
            integrated_gradients.explain,
            error="deviation of the signed scores' sum from the objective's gain from the baseline to the prompt",
        ),
        Method(
            gradient_shap.GradientShap,
            "the mean gradient at random points of the path from a baseline to the prompt, times their difference",
            Cost(Passes((("samples", ""), (2, ""))), Passes((("samples", "n"),))),
            gradient_shap.explain,
            error="the largest standard error of a signed score",
        ),
        Method(
            deeplift.DeepLift,
            "DeepLIFT's rescale rule for the non-linearities that Captum has rules for; equals gradient x (input - "
            "baseline) on models without them",
            Cost(Passes(((2, ""),)), Passes(((1, "n"),))),
            deeplift.explain,
        ),
        Method(
            layer_gradient_x_activation.LayerGradientXActivation,
            "a layer's output at each token times the gradient of the target by it",
            _GRADIENT_PER_STEP,
            layer_gradient_x_activation.explain,
        ),
        Method(
            relevance.Relevance,
            "relevance propagation as in AttnLRP and RelP: gradients with rules that conserve relevance",
            _GRADIENT_PER_STEP,
            relevance.explain,
            needs_gates=True,
        ),
        Method(
            value_zeroing.ValueZeroing,
            "the change of layers' outputs when a token's value vector is zeroed",
            Cost(Passes(((1, ""), (1, "n"))), keeps_attention=True),
            value_zeroing.explain,
            has_target=False,
        ),
        Method(
            attention_rollout.AttentionRollout,
            "the product over layers of attention weights mixed with the identity",
            Cost(_ONCE, keeps_attention=True),
            attention_rollout.explain,
            has_target=False,
        ),
        Method(
            occlusion.Occlusion,
            "the drop of the target when a token's embedding is replaced",
            Cost(Passes(((1, "m"), (1, "")))),
            occlusion.explain,
        ),
        Method(
            lime.Lime,
            "LIME: the slopes of a linear model of the target over the presence of tokens",
            Cost(Passes((("samples", ""),))),
            lime.explain,
            error="the largest standard error of a slope",
        ),
        Method(
            reagent.ReAgent,
            "ReAGent: importance of tokens by how much plausible replacements lower the target's probability",
            Cost(Passes((("samples", ""), (2, "")))),
            reagent.explain,
        ),
    )
}


def method_named(name: str) -> Method:
    """A method by its name in requests.

    Raises:
        InvalidRequestError: where there is no such method.
    """
    if name not in METHODS:
        raise InvalidRequestError("attribution.method", f"{name!r} is not one of {', '.join(METHODS)}")
    return METHODS[name]
