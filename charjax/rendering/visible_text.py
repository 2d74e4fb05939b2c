"""Makes text that may contain any character, e.g. a model's output, safe to show."""

import unicodedata

# Bidirectional controls share the category Cf with the joiners of Indic scripts and emoji, which must stay.
BIDI_CONTROLS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_SYMBOLS = {"\n": "\u21b5", "\t": "\u21e5", " ": "\u2423"}


def printable(text: str, encoding: str = "utf-8") -> str:
    r"""Makes text safe for a terminal by showing escape sequences, bells and carriage returns instead of sending them.

    Control characters become control pictures (U+241B for ESC) or escapes such as \x9b. Newlines and tabs are kept, and
    \r\n becomes a newline. Line separators, surrogates, bidirectional controls and characters not in `encoding`
    become escapes; the surrogate for an undecodable byte becomes an escape of that byte.

    Args:
        text: any text.
        encoding: encoding of the terminal or file.
    """
    shown = "".join(map(_show, text.replace("\r\n", "\n")))
    return shown.encode(encoding, errors="backslashreplace").decode(encoding)


def _show(character: str) -> str:
    if character in "\n\t":
        return character
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, as errors="surrogateescape" decodes it
        return f"\\x{code - 0xDC00:02x}"
    if unicodedata.category(character) in ("Cc", "Zl", "Zp") or character in BIDI_CONTROLS:
        return character.encode("unicode_escape").decode("ascii")
    return character


def one_line(text: str, encoding: str = "utf-8") -> str:
    r"""Makes text safe for a terminal, as `printable` does, and shows newlines as \n."""
    return printable(text, encoding).replace("\n", "\\n")


def name_character(character: str) -> str:
    """Returns a visible name: the character itself, a symbol for whitespace, 0xFF for a stray byte, or e.g. U+0000."""
    code = ord(character)
    if character in _SYMBOLS:
        return _SYMBOLS[character]
    if 0xDC80 <= code <= 0xDCFF:
        return f"0x{code - 0xDC00:02X}"
    # The symbols themselves are named by code point: each name belongs to one character.
    if character.isprintable() and not character.isspace() and character not in _SYMBOLS.values():
        return character
    return f"U+{code:04X}"


def visible(text: str) -> str:
    """Names every character that would be invisible, except spaces and line breaks."""
    return "".join(c if c in " \n" or c.isprintable() else name_character(c) for c in text)
