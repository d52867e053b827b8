"""Check that a loaded tokenizer encodes and decodes as its tokenizer.json says, on a set of sample texts.

Transformers builds some tokenizers from the class that tokenizer_config.json names, and takes only the vocabulary from
tokenizer.json. The splits at digits, spaces or scripts are then the class's, and the token ids differ from those that
the model was trained on.
"""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

# Texts on which tokenizers are known to differ: they split differently at spaces, digits, lines, scripts and marks.
SAMPLES = (
    "Hello, world! It's 5 o'clock; they'll've gone, DON'T they?",
    " leading and trailing ",
    "  two  and   three    spaces\tand\ttabs\u00a0and\u3000others  ",
    "line\nline\r\nline\n\n\nline \n  indented\n",
    "0 1 12 123 1234 12345 3.14159 1,000,000 2024-05-17T08:09:10Z 0x1F",
    "def f(x_1, *args):\n    return {'a': [x_1 ** 2, not args], \"b\": None}  # comment\n",
    "camelCase snake_case SCREAMING_CASE kebab-case a/b\\c user@example.org https://example.org/?q=1&r=%20",
    "na\u00efve caf\u00e9 Stra\u00dfe \u0130stanbul \u01c5 \ufb01ne \u00c5ngstr\u00f6m",
    "cafe\u0301 A\u030a \u1100\u1161\u11a8",  # the same characters, decomposed
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u3053\u3093\u306b\u3061\u306f \uc548\ub155",
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\u041f\u0440\u0438\u0432\u0435\u0442 \u0393\u03b5\u03b9\u03ac \u0665\u0666 \u00bd \u2166",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f \U0001f1e9\U0001f1ea",
    "(a) [b] {c} <d> \u201ce\u201d \u2018f\u2019 \u2014 \u2026 $5 50% #1 ^2 ~x |y| `z`",
    "\u2581under \u0120dotted ##piece @@joined </w>",  # other tokenizers' marks, as text
    "x",
)
_NUM_PIECES = 400  # tokens of the vocabulary whose texts are compared too


def difference_from(stored: Tokenizer, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The first difference between a tokenizer and its tokenizer.json, as text for an error; None where there is none.

    The texts are `SAMPLES`, the file's special tokens between words, and tokens sampled from the vocabulary. Tokens
    that tokenizer_config.json adds are not a difference. BOS and EOS are compared too: with a tokenizer.json,
    Transformers ignores add_bos_token and add_eos_token.

    Args:
        stored: tokenizer.json.
        tokenizer: the loaded tokenizer.
    """
    backend: Tokenizer = tokenizer.backend_tokenizer
    if backend.to_str() == stored.to_str():
        return None
    stored.no_truncation()
    stored.no_padding()
    loaded = Tokenizer.from_str(backend.to_str())  # a copy: Transformers sets truncation and padding at each call
    loaded.no_truncation()
    loaded.no_padding()
    vocabulary = stored.get_vocab(with_added_tokens=True)
    loaded_vocabulary = loaded.get_vocab(with_added_tokens=True)
    for token, token_id in vocabulary.items():
        if (loaded_id := loaded_vocabulary.get(token)) != token_id:
            return f"the token {token!r} is {token_id} in tokenizer.json, but {loaded_id} in the loaded tokenizer"
    added = [token.content for token in stored.get_added_tokens_decoder().values()]
    ids = sorted(vocabulary.values())[:: max(1, len(vocabulary) // _NUM_PIECES)]
    pieces = [stored.decode([token_id], skip_special_tokens=False) for token_id in ids]
    texts = [*SAMPLES, *(f"a{token}b {token} c" for token in added[:50]), "".join(added[:50])]
    texts += [" ".join(pieces[start : start + 20]) for start in range(0, len(pieces), 20)]
    for text in texts:
        for special in (False, True):
            expected, found = (each.encode(text, add_special_tokens=special) for each in (stored, loaded))
            if (expected.ids, expected.offsets) != (found.ids, found.offsets):
                return f"{text[:60]!r} is {expected.ids[:12]} in tokenizer.json, but {found.ids[:12]} in the loaded one"
        expected_text, text = (each.decode(expected.ids, skip_special_tokens=False) for each in (stored, loaded))
        if expected_text != text:
            return (
                f"the tokens {expected.ids[:12]} are decoded to {expected_text[:60]!r} by tokenizer.json, but to "
                f"{text[:60]!r} by the loaded tokenizer"
            )
    return None


def tokenizer_from_file(
    stored: Tokenizer,
    configured: PreTrainedTokenizerBase,
    classed: PreTrainedTokenizerBase,
) -> PreTrainedTokenizerBase:
    """A tokenizer that encodes and decodes as its tokenizer.json says.

    Args:
        stored: tokenizer.json.
        configured: the tokenizer of tokenizer_config.json without its class: source of the chat template, the names of
            special tokens, and the tokens that only the configuration adds.
        classed: the tokenizer of that class: source of special tokens that the configuration does not name.
    """
    vocabulary = stored.get_vocab(with_added_tokens=True)
    names: dict[str, Any] = {
        name: token
        for name, token in classed.special_tokens_map.items()
        if isinstance(token, str) and token in vocabulary
    }
    names |= {name: token for name, token in configured.special_tokens_map.items() if isinstance(token, str)}
    tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast(
        tokenizer_object=stored,
        chat_template=configured.chat_template,
        model_max_length=configured.model_max_length,
        **names,
    )
    added = sorted(configured.added_tokens_decoder.items())
    tokenizer.add_tokens([token for _, token in added if token.content not in vocabulary])
    return tokenizer
