"""The end of a turn: what the chat template writes there must end generation, in every command that uses the template."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from tessy_jax.errors import TokenizerError
from tessy_jax.text.tokenizer import Tokenizer

MARKER = "\uf8fe0\uf8ff"
EXCHANGE = ({"role": "user", "content": "Hello."}, {"role": "assistant", "content": MARKER})


def turn_end(tokenizer: Tokenizer, end_ids: Collection[int], render: Callable[[Sequence[dict[str, str]]], str]) -> list[int]:
    """The tokens by which the chat template ends an assistant's turn; the last of them is in end_ids.

    end_ids: tokens that end generation. render: messages → the template's text, without a generation prompt.

    Raises:
        TokenizerError: the template fails, drops an assistant's message, or ends it without a token of end_ids. Then
            generation would never end where a turn does.
    """
    try:
        text = render([dict(message) for message in EXCHANGE])
    except TokenizerError:
        raise
    except Exception as error:  # templates are programs and can raise any type
        raise TokenizerError(
            f"{tokenizer.folder}: the chat template fails on a user's and an assistant's message ({error}); use a template "
            "that takes both"
        ) from error
    _, marker, after = text.rpartition(MARKER)
    if not marker:
        raise TokenizerError(
            f"{tokenizer.folder}: the chat template drops the content of an assistant's message (it gives {text[-40:]!r}); "
            "use a template that keeps it"
        )
    special = {int(i) for i, token in tokenizer.hf.added_tokens_decoder.items() if token.special}
    written = tokenizer.encode_continuing(after)
    for i, token in enumerate(written):
        if token in end_ids:
            return written[: i + 1]
        if token in special:
            break
    named = ", ".join(str(i) for i in sorted(end_ids))
    missing = next((token for token in written if token in special), None)
    if missing is None:
        raise TokenizerError(
            f"{tokenizer.folder}: the chat template ends an assistant's message with {after!r}, which has no token that "
            f"ends a turn (eos_token_id is {named}); use a template that ends its turns, or set eos_token_id in "
            "generation_config.json"
        )
    raise TokenizerError(
        f"{tokenizer.folder}: the chat template ends an assistant's turn with {tokenizer.hf.convert_ids_to_tokens(missing)} "
        f"({missing}), which does not end generation (eos_token_id is {named}); set eos_token_id in generation_config.json "
        f"to [{', '.join(str(i) for i in sorted({*end_ids, missing}))}]"
    )


def checked_ends(tokenizer: Tokenizer, variables: Mapping[str, Any]) -> list[int]:
    """The tokens that end generation, for prompts in the tokenizer's own chat template. variables: of the template.

    Raises:
        TokenizerError: as `turn_end`.
    """
    end_ids = tokenizer.eos_ids()
    turn_end(tokenizer, end_ids, lambda messages: tokenizer.hf.apply_chat_template(messages, tokenize=False, **variables))
    return end_ids
