"""What characters are called where they cannot be seen, or must not do what they do."""

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
