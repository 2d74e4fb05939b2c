"""Makes text from a model, which may hold any character, harmless to a terminal."""

import unicodedata

# Bidirectional controls are of category Cf like the joiners of Indic scripts and emoji, which must stay.
BIDI_CONTROLS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str, encoding: str = "utf-8") -> str:
    r"""Shows what would steer the terminal, instead of sending it: escape sequences, bells, carriage returns.

    Control characters become their pictures (ESC is U+241B) or escapes such as \x9b; newlines and tabs stay,
    and \r\n is a newline. Line separators, surrogates, controls of writing direction and what `encoding` does
    not have become escapes; the surrogate of an undecodable byte becomes that of the byte.

    Args:
        text: any text.
        encoding: what the terminal or file takes.
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
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8, as errors="surrogateescape" decodes it
        return f"\\x{code - 0xDC00:02x}"
    if unicodedata.category(character) in ("Cc", "Zl", "Zp") or character in BIDI_CONTROLS:
        return character.encode("unicode_escape").decode("ascii")
    return character


_NAMES = {"\n": "\u21b5", "\t": "\u21e5", " ": "\u2423"}


def name_character(character: str) -> str:
    """A character as it can be seen: itself, a sign for white space, else its code point; a stray byte as 0x80."""
    code = ord(character)
    if character in _NAMES:
        return _NAMES[character]
    if 0xDC80 <= code <= 0xDCFF:
        return f"0x{code - 0xDC00:02X}"
    # The signs themselves, too: each must stand for one character.
    if character.isprintable() and not character.isspace() and character not in _NAMES.values():
        return character
    return f"U+{code:04X}"


def visible(text: str) -> str:
    """Text beside the painted one, such as a file's name, with nothing in it hidden; line breaks stay."""
    return "".join(c if c in " \n" or c.isprintable() else name_character(c) for c in text)
