"""Names and words that several tasks share. All invented or everyday; towns are made up."""


def words(text: str) -> tuple[str, ...]:
    """Split a list written as one text at its white space."""
    return tuple(text.split())


GIRLS = words("Mia Anna Lucy Ella Nora Ruth Clara Ivy Rosa Tess Zoe Maya Elsa Hanna Lena Dora")
BOYS = words("Tom Ben Leo Max Sam Finn Otto Paul Hugo Ned Jack Adam Carl Noah Luke Oscar")
NAMES = GIRLS + BOYS
TOWNS = words(
    "Brimford Quillby Marsholt Tarrowick Elmsby Fenmoor Dunmere Ostrel Pellham Ravensea Selwick Underby Wexmoor "
    "Zennick Copperby Birchmere"
)
COLOURS = words("red blue green black white brown grey yellow pink golden silver purple")
OBJECTS = words("box chair lamp clock table bag cup vase mirror drum")


def pronoun(name: str) -> str:
    """Give the pronoun of a person in these stories."""
    return "she" if name in GIRLS else "he"


def possessive(name: str) -> str:
    """Give the possessive of a person in these stories."""
    return "her" if name in GIRLS else "his"
