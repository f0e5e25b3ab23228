"""What is true of a picture, found out from the objects in boxes.jsonl and the words of a sentence alone.

It shares no code with `comodal.synthetic`: sentences are parsed by regular expressions, positions are compared by the
longer of two distances between the middles of boxes, sizes by their areas.
"""

import json
import re
from pathlib import Path

COLOURS = "red|orange|yellow|green|teal|blue|purple|pink|brown|white|grey|black"
MATERIALS = "wood|metal|glass|plastic"
KINDS = "ball|bell|bird|clock|drum|fan|frog|guitar|horn|siren|cloud|cone|crate|gem|mug|star|tree"
NOUN = rf"(?:(?:{COLOURS}) )?(?:(?:{MATERIALS}) )?(?:{KINDS}|thing)"
PLACE = "left of|right of|above|below"


def read_boxes(path: Path) -> dict[str, list[dict]]:
    """The objects of each picture: kind, color, material, box."""
    found = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        things = zip(record["objects"], record["boxes"], strict=True)
        found[record["image"]] = [{**thing, "box": box, "number": i} for i, (thing, box) in enumerate(things)]
    return found


def fits(noun: str, thing: dict) -> bool:
    words = noun.split()
    return all(word in (thing["kind"], thing["color"], thing["material"], "thing") for word in words)


def those(noun: str, things: list[dict]) -> list[dict]:
    return [thing for thing in things if fits(noun, thing)]


def the(noun: str, things: list[dict]) -> dict:
    """The only one of this name."""
    (thing,) = those(noun, things)
    return thing


def where(thing: dict, anchor: dict) -> str:
    across, down = (
        (thing["box"][a] + thing["box"][a + 2]) / 2 - (anchor["box"][a] + anchor["box"][a + 2]) / 2 for a in (0, 1)
    )
    if abs(across) > abs(down):
        return "left of" if across < 0 else "right of"
    return "above" if down < 0 else "below"


def at(noun: str, place: str, name: str, things: list[dict]) -> list[dict]:
    anchor = the(name, things)
    return [thing for thing in those(noun, things) if thing is not anchor and where(thing, anchor) == place]


def area(thing: dict) -> int:
    left, top, right, bottom = thing["box"]
    return (right - left) * (bottom - top)


def yes(true: object) -> str:
    return "yes" if true else "no"


def answer(question: str, things: list[dict]) -> str:
    """The answer to a question of the synthetic data's VQA."""
    if m := re.fullmatch(rf"What color is the ({NOUN}) ({PLACE}) the ({NOUN})\?", question):
        (thing,) = at(*m.groups(), things)
        return thing["color"]
    if m := re.fullmatch(rf"What is the ({NOUN}) ({PLACE}) the ({NOUN}) made of\?", question):
        (thing,) = at(*m.groups(), things)
        return thing["material"]
    if m := re.fullmatch(rf"What is the ({NOUN}) ({PLACE}) the ({NOUN})\?", question):
        (thing,) = at(*m.groups(), things)
        return thing["kind"]
    if m := re.fullmatch(rf"How many ({NOUN})s are there\?", question):
        return str(len(those(m[1], things)))
    if m := re.fullmatch(rf"How many ({NOUN})s are ({PLACE}) the ({NOUN})\?", question):
        return str(len(at(*m.groups(), things)))
    if m := re.fullmatch(rf"Is there an? ({NOUN})\?", question):
        return yes(those(m[1], things))
    if m := re.fullmatch(rf"Is there an? ({NOUN}) ({PLACE}) the ({NOUN})\?", question):
        return yes(at(*m.groups(), things))
    if m := re.fullmatch(rf"Are there more ({NOUN})s than ({NOUN})s\?", question):
        return yes(len(those(m[1], things)) > len(those(m[2], things)))
    if m := re.fullmatch(rf"Is the ({NOUN}) the same color as the ({NOUN})\?", question):
        return yes(the(m[1], things)["color"] == the(m[2], things)["color"])
    m = re.fullmatch(rf"Is the ({NOUN}) larger than the ({NOUN})\?", question)
    assert m, f"a question of no known form: {question}"
    return yes(area(the(m[1], things)) > area(the(m[2], things)))


def meant(expression: str, things: list[dict]) -> list[dict]:
    """All objects that an expression fits."""
    if m := re.fullmatch(rf"(?:the )?(largest|smallest) ({NOUN})", expression):
        among = those(m[2], things)
        extreme = (max if m[1] == "largest" else min)(map(area, among))
        return [thing for thing in among if area(thing) == extreme]
    if m := re.fullmatch(rf"(?:the )?({NOUN})(?: of the)? same color as (?:the )?({NOUN})", expression):
        colour = the(m[2], things)["color"]
        return [thing for thing in those(m[1], things) if thing["color"] == colour]
    m = re.fullmatch(rf"(?:the )?({NOUN})(?: that is)? ({PLACE}) (?:the )?({NOUN})", expression)
    assert m, f"an expression of no known form: {expression}"
    return at(*m.groups(), things)


def of_pair(sentence: str, left: list[dict], right: list[dict]) -> bool:
    """Whether a sentence of the synthetic data's NLVR2 is true of two pictures."""
    if m := re.fullmatch(
        rf"There are more ({NOUN})s in the (left|right) image than in the (?:left|right) image\.", sentence
    ):
        one, other = (left, right) if m[2] == "left" else (right, left)
        return len(those(m[1], one)) > len(those(m[1], other))
    if m := re.fullmatch(rf"There are exactly (two|three|four) ({NOUN})s in the two images together\.", sentence):
        return len(those(m[2], left + right)) == {"two": 2, "three": 3, "four": 4}[m[1]]
    if m := re.fullmatch(rf"Each image contains an? ({NOUN})\.", sentence):
        return bool(those(m[1], left)) and bool(those(m[1], right))
    if m := re.fullmatch(rf"Only one of the images contains an? ({NOUN})\.", sentence):
        return bool(those(m[1], left)) != bool(those(m[1], right))
    m = re.fullmatch(rf"In one of the images an? ({NOUN}) is ({PLACE}) an? ({NOUN})\.", sentence)
    assert m, f"a sentence of no known form: {sentence}"
    return any(
        where(one, other) == m[2]
        for things in (left, right)
        for one in those(m[1], things)
        for other in those(m[3], things)
        if one is not other
    )


def label(statement: str, things: list[dict]) -> str:
    """What a statement of the synthetic data's SNLI-VE is to a picture."""
    m = re.match(rf"The ({NOUN}) (?:is|has) ", statement)
    assert m and len(those(m[1], things)) < 2, f"it is open which thing is meant: {statement}"
    if not those(m[1], things):
        return "neutral"
    thing = the(m[1], things)
    if m := re.fullmatch(rf"The {NOUN} is ({COLOURS})\.", statement):
        true = thing["color"] == m[1]
    elif m := re.fullmatch(rf"The {NOUN} is ({PLACE}) the ({NOUN})\.", statement):
        true = where(thing, the(m[2], things)) == m[1]
    else:
        m = re.fullmatch(rf"The {NOUN} has the same color as the ({NOUN})\.", statement)
        assert m, f"a statement of no known form: {statement}"
        true = thing["color"] == the(m[1], things)["color"]
    return "entailment" if true else "contradiction"


def is_true(words: list, things: list[dict]) -> bool:
    """Whether a sentence of the synthetic data's VCR is true; an object is a list of its number, from 0."""
    text = " ".join(word if isinstance(word, str) else f"[{word[0]}]" for word in words)
    if m := re.fullmatch(rf"\[(\d)\] is ({PLACE}) \[(\d)\](?: and made of ({MATERIALS}))? \.", text):
        thing = things[int(m[1])]
        return where(thing, things[int(m[3])]) == m[2] and m[4] in (None, thing["material"])
    if m := re.fullmatch(rf"\[(\d)\] is ({COLOURS}) and \[(\d)\] is ({COLOURS}) \.", text):
        return things[int(m[1])]["color"] == m[2] and things[int(m[3])]["color"] == m[4]
    m = re.fullmatch(rf"\[(\d)\] is ({COLOURS}) and made of ({MATERIALS}) \.", text)
    assert m, f"a sentence of no known form: {text}"
    return things[int(m[1])]["color"] == m[2] and things[int(m[1])]["material"] == m[3]
