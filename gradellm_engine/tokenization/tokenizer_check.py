"""Whether the tokenizer in use reads and writes texts as its tokenizer.json says, compared on texts that tell.

Transformers builds some tokenizers by the class that tokenizer_config.json names, and takes only the vocabulary from
the file. Splits at digits, spaces or scripts are then that class's, and token ids are not those that the model was
trained on.
"""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

# Texts in which tokenizers are known to differ: by how they split at spaces, digits, lines, scripts and marks.
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
_NUM_PIECES = 400  # tokens of the vocabulary whose texts are compared, too


def difference_from(stored: Tokenizer, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Say where a tokenizer reads or writes otherwise than its tokenizer.json; None where it does not.

    The texts are `SAMPLES`, special tokens of the file between words, and tokens from all over the vocabulary. Tokens
    that tokenizer_config.json adds are no difference. What begins and ends a text is the file's, too: Transformers
    passes over add_bos_token and add_eos_token where there is one.
    """
    backend: Tokenizer = tokenizer.backend_tokenizer
    if backend.to_str() == stored.to_str():
        return None
    stored.no_truncation()
    stored.no_padding()
    own = Tokenizer.from_str(backend.to_str())  # a copy: Transformers sets truncation and padding call by call
    own.no_truncation()
    own.no_padding()
    vocabulary = stored.get_vocab(with_added_tokens=True)
    has = own.get_vocab(with_added_tokens=True)
    for token, token_id in vocabulary.items():
        if has.get(token) != token_id:
            return f"the token {token!r} is {token_id} in the file, and {has.get(token)}"
    added = [token.content for token in stored.get_added_tokens_decoder().values()]
    ids = sorted(vocabulary.values())[:: max(1, len(vocabulary) // _NUM_PIECES)]
    pieces = [stored.decode([token_id], skip_special_tokens=False) for token_id in ids]
    texts = [*SAMPLES, *(f"a{token}b {token} c" for token in added[:50]), "".join(added[:50])]
    texts += [" ".join(pieces[start : start + 20]) for start in range(0, len(pieces), 20)]
    for text in texts:
        for special in (False, True):
            wanted, found = (one.encode(text, add_special_tokens=special) for one in (stored, own))
            if (wanted.ids, wanted.offsets) != (found.ids, found.offsets):
                return f"{text[:60]!r} is {wanted.ids[:12]} in the file, and {found.ids[:12]}"
        written, read = (one.decode(wanted.ids, skip_special_tokens=False) for one in (stored, own))
        if written != read:
            return f"the tokens {wanted.ids[:12]} are written {written[:60]!r} in the file, and {read[:60]!r}"
    return None


def made_from(
    stored: Tokenizer,
    configured: PreTrainedTokenizerBase,
    classed: PreTrainedTokenizerBase,
) -> PreTrainedTokenizerBase:
    """A tokenizer that reads and writes as its tokenizer.json says, whatever else its folder says.

    Args:
        stored: what tokenizer.json says.
        configured: tokenizer_config.json without the class that it names: its chat template, its names of special
            tokens, the tokens that only it knows.
        classed: the tokenizer of that class, whose special tokens count where the configuration names none.
    """
    vocabulary = stored.get_vocab(with_added_tokens=True)
    names: dict[str, Any] = {
        name: token
        for name, token in classed.special_tokens_map.items()
        if isinstance(token, str) and token in vocabulary
    }
    names |= {name: token for name, token in configured.special_tokens_map.items() if isinstance(token, str)}
    made: PreTrainedTokenizerBase = PreTrainedTokenizerFast(
        tokenizer_object=stored,
        chat_template=configured.chat_template,
        model_max_length=configured.model_max_length,
        **names,
    )
    added = sorted(configured.added_tokens_decoder.items())
    made.add_tokens([token for _, token in added if token.content not in vocabulary])
    return made
