"""Names and words that several tasks share; the towns are invented."""


def words(text: str) -> tuple[str, ...]:
    """A text split at its white space."""
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
    """The pronoun of a person in the stories."""
    return "she" if name in GIRLS else "he"


def possessive(name: str) -> str:
    """The possessive of a person in the stories."""
    return "her" if name in GIRLS else "his"
