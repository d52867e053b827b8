"""The methods that the engine knows. A method to come is a file of its own and a row here."""

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
_WITHIN_PASS = Cost(_ONCE, _ONCE, of_completion_alone=True)
_A_GRADIENT_A_STEP = Cost(_ONCE, Passes(((1, "n"),)))

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            GradEllm,
            "Grad-ELLM: in every layer the gradient of the token's logit by attention's output, weighted with how "
            "alike query and key are; one backward pass through one token",
            _WITHIN_PASS,
        ),
        Method(
            Attention,
            "what the last layer's heads attend to, their mean",
            _WITHIN_PASS,
            has_target=False,
        ),
        Method(
            GradSam,
            "Grad-SAM: attention weights times the positive part of the logit's gradient by them, the mean over heads "
            "and layers",
            _WITHIN_PASS,
        ),
        Method(
            random.Random,
            "uniform random scores: what every other method has to beat",
            Cost(Passes()),
            scores=random.scores,
            has_target=False,
        ),
        Method(
            saliency.Saliency,
            "the gradient of the target by each token's embedding",
            _A_GRADIENT_A_STEP,
            saliency.explain,
        ),
        Method(
            input_x_gradient.InputXGradient,
            "each token's embedding times the gradient of the target by it",
            _A_GRADIENT_A_STEP,
            input_x_gradient.explain,
        ),
        Method(
            integrated_gradients.IntegratedGradients,
            "the gradient along the path from a baseline to the prompt, times their difference",
            Cost(Passes((("steps", ""), (2, ""))), Passes((("steps", "n"),))),
            integrated_gradients.explain,
            error="how far the signed scores' sum is from what the objective gains from the baseline to the prompt",
        ),
        Method(
            gradient_shap.GradientShap,
            "the gradient at random places of the path from a baseline to the prompt, times their difference",
            Cost(Passes((("samples", ""), (2, ""))), Passes((("samples", "n"),))),
            gradient_shap.explain,
            error="the largest standard error of a signed score",
        ),
        Method(
            deeplift.DeepLift,
            "DeepLIFT's rescale rule for the non-linearities that Captum has rules for; the gradient times input minus "
            "baseline where a model has none of them",
            Cost(Passes(((2, ""),)), Passes(((1, "n"),))),
            deeplift.explain,
        ),
        Method(
            layer_gradient_x_activation.LayerGradientXActivation,
            "a layer's output at each token times the gradient of the target by it",
            _A_GRADIENT_A_STEP,
            layer_gradient_x_activation.explain,
        ),
        Method(
            relevance.Relevance,
            "relevance propagation as in AttnLRP and RelP: gradients by rules under which relevance is conserved",
            _A_GRADIENT_A_STEP,
            relevance.explain,
            needs_gates=True,
        ),
        Method(
            value_zeroing.ValueZeroing,
            "how much layers' outputs change when nothing is taken from a token's value",
            Cost(Passes(((1, ""), (1, "n"))), keeps_attention=True),
            value_zeroing.explain,
            has_target=False,
        ),
        Method(
            attention_rollout.AttentionRollout,
            "attention multiplied through the layers, with the residual beside it",
            Cost(_ONCE, keeps_attention=True),
            attention_rollout.explain,
            has_target=False,
        ),
        Method(
            occlusion.Occlusion,
            "what the target loses when a token's embedding is taken away",
            Cost(Passes(((1, "m"), (1, "")))),
            occlusion.explain,
        ),
        Method(
            lime.Lime,
            "LIME: the slopes of a linear model over which tokens are there",
            Cost(Passes((("samples", ""),))),
            lime.explain,
            error="the largest standard error of a slope",
        ),
        Method(
            reagent.ReAgent,
            "ReAGent: importance goes to tokens whose plausible replacement makes the target less probable",
            Cost(Passes((("samples", ""), (2, "")))),
            reagent.explain,
        ),
    )
}


def method_named(name: str) -> Method:
    """The row of a method.

    Raises:
        InvalidRequestError: for a name that is not there.
    """
    if name not in METHODS:
        raise InvalidRequestError("attribution.method", f"{name!r} is not one of {', '.join(METHODS)}")
    return METHODS[name]
