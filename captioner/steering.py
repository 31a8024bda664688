"""The words that steer a search, as the ids that a search works with."""

from __future__ import annotations

from captioner.config import DecodingConfig
from captioner.errors import ConfigError
from captioner.search import SpecialIds
from captioner.system.foreign import excerpt, plain
from captioner.text import Tokenizer, Vocabulary

MOST_NAMED = 10  # unknown words in a message


def steered(ids: SpecialIds, options: DecodingConfig, vocabulary: Vocabulary) -> SpecialIds:
    """Return the ids of a search that `options.start` and `options.forbid` steer.

    Args:
        ids: the special tokens, unsteered.
        options: search settings.
        vocabulary: of the model.

    Raises:
        ConfigError: if a word cannot be used, or if no caption can fulfil all settings.
    """
    tokenizer = vocabulary.tokenizer
    start = tokenizer.tokenize(options.start) if options.start else []
    forbidden = [_one_token(word, tokenizer) for word in options.forbid]
    if options.start and not start:
        raise ConfigError(f"decoding.start: holds no word, given {excerpt(options.start, 60)}")
    _check_start(start, set(forbidden), options, vocabulary)
    known = [token for token in forbidden if token in vocabulary.counts]
    never = {*ids.suppress_ids, *vocabulary.encode(known)}
    _check_rest(len(start), len(vocabulary) - len(never | {ids.eos_id}), options)
    return ids._replace(
        suppress_ids=tuple(sorted(never)),
        start=tuple(vocabulary.encode(start)),
        repeatable=vocabulary.common_ids,
    )


def _one_token(word: str, tokenizer: Tokenizer) -> str:
    """Return the token of a forbidden word."""
    if tokenizer.name == "bpe":
        raise ConfigError(
            f"decoding.forbid: a model of text.tokenizer bpe writes pieces of words and cannot "
            f"forbid a word, given {excerpt(word, 60)}; replace it in the captions, with --map"
        )
    tokens = tokenizer.tokenize(word)
    if len(tokens) == 1:
        return tokens[0]
    if not tokens:
        raise ConfigError(
            f"decoding.forbid: must be words, as captions hold no punctuation, given "
            f"{excerpt(word, 60)}"
        )
    raise ConfigError(
        f"decoding.forbid: must be single words, given {excerpt(word, 60)}, which is "
        f"{len(tokens)}: {plain(', '.join(tokens), 60)}; forbid one of them"
    )


def _check_start(
    start: list[str], forbidden: set[str], options: DecodingConfig, vocabulary: Vocabulary
) -> None:
    """Raise a ConfigError if no caption can begin with `start`."""
    unknown = [token for token in dict.fromkeys(start) if token not in vocabulary.counts]
    if unknown:
        names = ", ".join(plain(word, 60) for word in unknown[:MOST_NAMED])
        more = f" and {len(unknown) - MOST_NAMED:,} more" if len(unknown) > MOST_NAMED else ""
        raise ConfigError(
            f"decoding.start: the model does not know {names}{more}; start with words of its "
            f"training captions"
        )
    if both := [token for token in start if token in forbidden]:
        raise ConfigError(
            f"decoding.start: holds {excerpt(both[0], 60)}, which decoding.forbid forbids"
        )
    if len(start) > options.max_length:
        raise ConfigError(
            f"decoding.start: {len(start):,} words, more than decoding.max_length, "
            f"{options.max_length:,}"
        )
    size = options.no_repeat_ngram_size if options.search == "beam" else 0
    ngrams = [tuple(start[i : i + size]) for i in range(len(start) - size + 1) if size]
    if repeated := next((gram for gram in ngrams if ngrams.count(gram) > 1), None):
        raise ConfigError(
            f"decoding.start: repeats {excerpt(' '.join(repeated), 60)}, which "
            f"decoding.no_repeat_ngram_size {size} forbids"
        )


def _check_rest(given: int, words: int, options: DecodingConfig) -> None:
    """Raise a ConfigError if the words that are left cannot fill a caption of the least length.

    Args:
        given: words of the start.
        words: number of words that the model may write.
        options: search settings.
    """
    if given >= max(1, options.min_length):
        return
    if not words:
        raise ConfigError("decoding.forbid: forbids every word of the model; forbid fewer")
    # After t words, an n-gram rule blocks at most t - n + 1 of them.
    size = options.no_repeat_ngram_size if options.search == "beam" else 0
    if size and words <= options.min_length - size:
        raise ConfigError(
            f"decoding.min_length: {words:,} words do not fill {options.min_length:,} places "
            f"with decoding.no_repeat_ngram_size {size}; lower one of the two"
        )
