"""Gradio: an answer next to the prompt, coloured by attribution.

pip install gradio gradellm
gradellm serve &
python gradio_app.py
"""

from __future__ import annotations

from gradellm import Client, Explanation


def highlighted(explanation: Explanation) -> list[tuple[str, float]]:
    """The value of `gradio.HighlightedText`: prompt tokens, each with its share of the largest score, -1..1."""
    scores = explanation.attribution_of()
    visible = [i for i, token in enumerate(explanation.prompt_tokens) if token.role != "template" and not token.special]
    peak = max((abs(scores[i]) for i in visible), default=0.0) or 1.0
    return [(explanation.prompt_tokens[i].text, scores[i] / peak) for i in visible]


def main(target: str = "localhost:50051") -> None:
    import gradio

    client = Client(target)

    def answer(question: str) -> tuple[str, list[tuple[str, float]]]:
        explanation = client.explain(messages=[("user", question)], max_new_tokens=128)
        return explanation.text, highlighted(explanation)

    gradio.Interface(
        answer,
        gradio.Textbox(label="Question"),
        [gradio.Textbox(label="Answer"), gradio.HighlightedText(label="What it came from", show_legend=True)],
    ).launch()


if __name__ == "__main__":
    main()
