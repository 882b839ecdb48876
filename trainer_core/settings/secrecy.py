"""What must not be shown: secrets by their name, and texts that look like a token of the Hub.

Everything that shows a value to somebody asks here: messages, `repr`, `to_dict`, the journal, checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Final

MASK: Final = "***"
_ENDS: Final = ("token", "password", "passwd", "secret", "api_key", "apikey", "authorization")
_OF_A_VOCABULARY: Final = re.compile(r"(bos|eos|pad|unk|sep|cls|mask|image|audio|video)_token")
# A token has 34 letters and digits behind its prefix; half of them tell it from a word such as hf_transfer.
_TOKEN: Final = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
_WHOLE_TOKEN: Final = re.compile(r"hf_[A-Za-z0-9]+")
_PASSWORD_IN_URL: Final = re.compile(r"(://[^/\s:@]*:)[^/\s@]+(?=@)")
_CREDENTIALS: Final = re.compile(r"\b(Bearer) +[A-Za-z0-9._~+/=-]{4,}")
_PAIR: Final = re.compile(rf"(?i)(\w*(?:{'|'.join(_ENDS)})[\"']?\s*[:=]\s*)(?:\"[^\"]*\"?|'[^']*'?|[^\s,}}\]]+)")


def is_secret(name: str) -> bool:
    """Whether a value under this name is a secret."""
    last = name.lower().replace("-", "_").rpartition(".")[2]
    return last.endswith(_ENDS) and _OF_A_VOCABULARY.fullmatch(last) is None


def mask_secrets(value: Any, name: str = "") -> Any:
    """Gives `value` with secrets masked: by `name`, by the keys of mappings in it, and tokens wherever they stand.

    Args:
        value: anything; mappings and lists are gone through, other objects are given back as they are.
        name: under which the value was given; empty for none.
    """
    if value is not None and is_secret(name):
        return MASK
    if isinstance(value, str):
        return mask_text(value)
    if isinstance(value, Mapping):
        return {key: mask_secrets(item, str(key)) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(mask_secrets(item) for item in value)
    return value


def mask_mistaken(value: Any, name: str) -> Any:
    """Gives a value that may have been given under a wrong name, with what may be a secret masked."""
    if isinstance(value, str) and (_resembles_secret(name) or _WHOLE_TOKEN.fullmatch(value.strip())):
        return MASK
    if isinstance(value, Mapping) and not is_secret(name):
        return {key: mask_mistaken(item, str(key)) for key, item in value.items()}
    if type(value) in (list, tuple) and not is_secret(name):
        return type(value)(mask_mistaken(item, name) for item in value)
    return mask_secrets(value, name)


def mask_text(text: str, *, pairs: bool = False) -> str:
    """Gives a text with the tokens, passwords of URLs and credentials of headers in it masked.

    With `pairs` what follows a secret's name and a colon is masked, too.
    """
    text = _TOKEN.sub(MASK, text)
    text = _PASSWORD_IN_URL.sub(rf"\g<1>{MASK}", text)
    text = _CREDENTIALS.sub(rf"\g<1> {MASK}", text)
    return _PAIR.sub(rf"\g<1>{MASK}", text) if pairs else text


def _resembles_secret(name: str) -> bool:
    last = name.lower().replace("-", "_").rpartition(".")[2]
    if _OF_A_VOCABULARY.fullmatch(last):
        return False
    tails = (last.rpartition("_")[2], "_".join(last.split("_")[-2:]))
    return any(get_close_matches(tail, _ENDS, n=1, cutoff=0.75) for tail in tails)
