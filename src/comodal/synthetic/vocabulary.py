"""Every word of the synthetic data, as the vocab.txt of a BERT.

A vocabulary built from the captions alone would have to spell the words of the tasks. `train vilbert --vocabulary
world/vocab.txt` uses this one, which includes them.
"""

from pathlib import Path

from comodal.files import write_bytes_atomically
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.synthetic.scenes.sentences import CAPTION_OPENINGS, NOISE_PHRASES, SOUND_VERBS
from comodal.synthetic.scenes.world import MATERIALS, OBJECT_COLORS, SILENT_KINDS, SOUNDING_KINDS

COUNT_VOCABULARY = "0 1 2 3 4 5 6 one two three four five six"
POSITION_VOCABULARY = "left of, right of, above, below; smaller, larger, smallest and largest; nothing, everything"
TEMPLATE_VOCABULARY = """
    It is the thing, an image with things? Look there: like this, that, where both images are in each, made together.
    Exactly more than only contains of the same as can see has do shows. What color, how many; while hear, no, yes!
"""


def write_vocabulary(path: Path) -> None:
    """Write one token a line: the special tokens, every character as fallback, and the words."""
    kinds = [*SOUNDING_KINDS, *SILENT_KINDS]
    texts = [
        *kinds,
        *(f"{kind}s" for kind in kinds),
        *OBJECT_COLORS,
        *MATERIALS,
        COUNT_VOCABULARY,
        POSITION_VOCABULARY,
        TEMPLATE_VOCABULARY,
        *NOISE_PHRASES.values(),
    ]
    texts += [opening.format("") for opening in CAPTION_OPENINGS] + [
        form for forms in SOUND_VERBS.values() for form in forms
    ]
    characters = "a b c d e f g h i j k l m n o p q r s t u v w x y z 7 8 9 [ ] ' - ( )"
    write_bytes_atomically(
        path, ("\n".join(WordPieceTokenizer.from_texts([*texts, characters]).vocabulary) + "\n").encode()
    )
