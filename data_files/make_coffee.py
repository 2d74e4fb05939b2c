"""Writes coffee.txt: random sentences about coffee, the same ones every time.

    python data_files/make_coffee.py

Every sentence is a frame filled with random words. A good model of the text learns where a random word comes and how
likely each one is; no model can know more than that.
"""

import math
import random
import re
from pathlib import Path
from statistics import fmean

SEED = 1652  # the year of London's first coffee house
CHARACTERS = 50_000

SLOTS = {
    "drink": ["espresso", "cappuccino", "filter coffee", "flat white", "macchiato", "cold brew", "mocha", "ristretto"],
    "origin": ["Ethiopia", "Kenya", "Colombia", "Guatemala", "Sumatra", "Yemen", "Brazil", "Rwanda"],
    "taste": ["chocolate", "blackberries", "caramel", "lemon peel", "hazelnuts", "jasmine", "honey", "smoke"],
    "person": ["the barista", "my neighbour", "the roaster", "a tired student", "grandmother", "the night guard"],
    "place": ["at the corner cafe", "in the kitchen", "on the night train", "by the window", "under the awning"],
    "time": ["before sunrise", "after lunch", "at midnight", "on Sunday morning", "between two meetings"],
    "tool": ["a paper filter", "a moka pot", "a French press", "a copper kettle", "a hand grinder"],
    "many": ["two", "three", "four", "five", "six"],
}

FRAMES = [
    "{person} drinks {many} cups of {drink} {time}.",
    "the beans from {origin} taste of {taste} and {taste}.",
    "{person} brews the coffee with {tool} {place}.",
    "nothing smells better {time} than fresh {drink}.",
    "for a good {drink}, grind the beans from {origin} right {time}.",
    "{place}, {person} waits for a {drink} that tastes of {taste}.",
    "with {tool} and water just off the boil, {person} makes {drink}.",
    "any {drink} made from {origin}'s beans keeps {person} awake.",
]

SENTENCES_PER_PARAGRAPH = 6


def sentence(rng: random.Random) -> str:
    """Returns a random sentence that begins with a capital."""
    frame = rng.choice(FRAMES)
    while "{" in frame:
        slot = frame[frame.index("{") + 1 : frame.index("}")]
        frame = frame.replace("{" + slot + "}", rng.choice(SLOTS[slot]), 1)
    return frame[0].upper() + frame[1:]


def text(characters: int = CHARACTERS, seed: int = SEED) -> str:
    """Returns paragraphs of sentences with at least the given number of characters."""
    rng = random.Random(seed)
    paragraphs: list[str] = []
    while sum(map(len, paragraphs)) < characters:
        paragraphs.append(" ".join(sentence(rng) for _ in range(SENTENCES_PER_PARAGRAPH)) + "\n\n")
    return "".join(paragraphs)


def entropy() -> float:
    """Returns the entropy of such a text in nats per character: the lowest possible loss on sentences not seen yet."""
    slots = [re.findall(r"{(\w+)}", frame) for frame in FRAMES]
    nats = math.log(len(FRAMES)) + fmean(sum(math.log(len(SLOTS[slot])) for slot in filled) for filled in slots)
    words = fmean(sum(fmean(map(len, SLOTS[slot])) for slot in filled) for filled in slots)
    fixed = fmean(len(re.sub(r"{\w+}", "", frame)) for frame in FRAMES)
    # A space between sentences, two line breaks after the last of a paragraph.
    between = (SENTENCES_PER_PARAGRAPH - 1 + 2) / SENTENCES_PER_PARAGRAPH
    return nats / (words + fixed + between)


if __name__ == "__main__":
    Path(__file__).with_name("coffee.txt").write_text(text(), encoding="ascii", newline="\n")
