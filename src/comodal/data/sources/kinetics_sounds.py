"""The 34 classes of Kinetics-Sounds (Look, Listen and Learn, appendix A.1) by their names in Kinetics.

The paper chose them from an early version of Kinetics whose names differ from those of Kinetics-400, -600 and -700.
Four were renamed. Three (typing, fingerpicking, patting) are neither in Kinetics-400 nor in -700, so later
work has 31 or 32 classes.
"""

KINETICS_SOUNDS: dict[str, str | None] = {
    "blowing nose": "blowing nose",
    "bowling": "bowling",
    "chopping wood": "chopping wood",
    "ripping paper": "ripping paper",
    "shuffling cards": "shuffling cards",
    "singing": "singing",
    "tapping pen": "tapping pen",
    "typing": None,
    "blowing out": "blowing out candles",
    "dribbling ball": "dribbling basketball",
    "laughing": "laughing",
    "mowing the lawn by pushing lawnmower": "mowing lawn",
    "shoveling snow": "shoveling snow",
    "stomping": "stomping grapes",
    "tap dancing": "tap dancing",
    "tapping guitar": "tapping guitar",
    "tickling": "tickling",
    "fingerpicking": None,
    "patting": None,
    "playing accordion": "playing accordion",
    "playing bagpipes": "playing bagpipes",
    "playing bass guitar": "playing bass guitar",
    "playing clarinet": "playing clarinet",
    "playing drums": "playing drums",
    "playing guitar": "playing guitar",
    "playing harmonica": "playing harmonica",
    "playing keyboard": "playing keyboard",
    "playing organ": "playing organ",
    "playing piano": "playing piano",
    "playing saxophone": "playing saxophone",
    "playing trombone": "playing trombone",
    "playing trumpet": "playing trumpet",
    "playing violin": "playing violin",
    "playing xylophone": "playing xylophone",
}
