"""The embedded corpus: questions about an invented world, made by rule, so that the default needs no download.

Each row asks for one attribute of one entity. The attribute (the row's label) decides which words the answer
may hold and in which sentence they stand; how the question is put, and the remark before it, are noise. So
what influences a test example is what is asked, in many wordings, and not the words that two prompts share:
the case that lexical similarity gets half right.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from workflow_scripts.core.seeds import derive_seed, generator

ROWS = 12_000
PRETRAINING_ROWS = 3_000

ENTITIES = {
    "animal": "fox heron otter badger lynx raven marten stoat plover vole hare adder crane newt elk boar",
    "village": "Aldry Bexholm Corvale Dunmere Estwick Farrow Glenby Harth Ivley Jarrow Kelby Lorne Marsk Norby "
    "Orley Penrith",
    "tool": "hammer chisel plane saw rasp awl clamp vice lathe mallet spade rake hoe scythe trowel pick",
    "dish": "stew broth loaf pie dumpling porridge pudding pickle cheese tart roast salad curry noodle omelette "
    "chowder",
    "person": "Ada Bram Cleo Dov Edda Finn Greta Hugo Inez Jory Kai Lena Milo Nora Otto Pia",
    "star": "Velor Tannis Quor Mirach Osan Deneb Ruvia Saiph Tarf Ulsa Wezen Xamid Yilda Zaurak Hadar Izar",
}

# attribute: (domain, wordings of what is asked, words that an answer may hold)
ATTRIBUTES = {
    "sound": ("animal", "noise|call|cry|voice", "hum bark chirp growl hiss whistle"),
    "home": ("animal", "den|shelter|nest|lodging", "burrow reed hollow cliff thicket bank"),
    "meal": ("animal", "food|prey|diet|feed", "beetle berry trout seed worm moss"),
    "gait": ("animal", "stride|pace|movement|step", "trot creep hop glide dash amble"),
    "trade": ("village", "craft|industry|business|work", "wool salt timber glass tin cider"),
    "river": ("village", "stream|water|brook|current", "Tarn Wye Ribble Esk Lune Avon"),
    "ruler": ("village", "mayor|chief|elder|leader", "Osric Maud Hilda Godwin Edith Wulf"),
    "feast": ("village", "festival|holiday|fair|celebration", "harvest lantern maypole bonfire skating kite"),
    "grip": ("tool", "handle|shaft|hold|haft", "ash oak bone horn brass leather"),
    "maker": ("tool", "smith|workshop|brand|forge", "Stanley Record Marples Sorby Tyzack Footprint"),
    "job": ("tool", "purpose|use|task|duty", "carving joining digging shaping piercing trimming"),
    "price": ("tool", "cost|charge|fee|sum", "three seven twelve twenty forty ninety"),
    "spice": ("dish", "seasoning|herb|flavour|aroma", "thyme cumin sage clove dill mace"),
    "vessel": ("dish", "bowl|pot|container|plate", "crock skillet ladle tin kettle tray"),
    "hour": ("dish", "time|moment|occasion|clock", "dawn noon dusk midnight teatime supper"),
    "region": ("dish", "origin|area|county|province", "coast valley moor island highland delta"),
    "hobby": ("person", "pastime|leisure|interest|passion", "chess rowing pottery fencing weaving archery"),
    "pet": ("person", "companion|beast|creature|mate", "parrot tortoise ferret goat spaniel cat"),
    "garment": ("person", "clothes|outfit|dress|wear", "cloak bonnet kilt scarf waistcoat shawl"),
    "fear": ("person", "dread|worry|phobia|terror", "thunder heights spiders crowds silence deep"),
    "colour": ("star", "hue|tint|shade|tone", "amber violet crimson azure ivory green"),
    "guild": ("star", "sign|omen|patron|symbol", "anchor crown ladder wheel feather key"),
    "season": ("star", "month|quarter|period|term", "spring summer autumn winter monsoon thaw"),
    "tale": ("star", "story|legend|myth|fable", "giant weaver twins serpent ferryman miller"),
}

# Each attribute answers in one of these sentences; several share a sentence.
ANSWERS = (
    "It is {value}, for sure.",
    "People there say {value}.",
    "The books name {value} and nothing else.",
    "You would find {value} with {entity}.",
    "Surely {value}, my friend!",
    "{value} it was, and {value} it stays.",
    "My answer: {value}.",
    "Look at {entity} and think of {value}.",
)
QUESTIONS = (
    "What {asked} goes with {entity}?",
    "Tell me the {asked} of {entity}.",
    "Name the {asked} that belongs to {entity}.",
    "I want to know which {asked} {entity} has.",
    "Which {asked} do you link to {entity}?",
    "For {entity}, give the {asked}.",
    "Do you know about {entity} and the {asked}?",
    "Please state the {asked} for {entity}.",
)
REMARKS = (
    "The old road was wet this morning.",
    "My sister sent a long letter.",
    "We lost the map near the bridge.",
    "A cold wind came down from the hills.",
    "The market closed before we got there.",
    "Somebody left a lamp in the window.",
    "The train was late again today.",
    "I read this in a dusty almanac.",
    "The children played by the wall.",
    "Two boats lay in the small harbour.",
    "There was music in the square.",
    "Nobody had mended the gate.",
)


def mini_rows() -> Iterator[dict[str, str]]:
    """Yield the rows of `builtin:mini`: prompt, response, label (the attribute asked for)."""
    rng = generator("builtin:mini")
    names = list(ATTRIBUTES)
    for _ in range(ROWS):
        attribute = names[rng.integers(len(names))]
        entity = _pick(rng, ENTITIES[ATTRIBUTES[attribute][0]].split())
        yield _row(rng, attribute, entity, _fact(attribute, entity), _answer(attribute))


def pretraining_rows() -> Iterator[dict[str, str]]:
    """Yield the rows of `builtin:mini-pretraining`: the same words and sentences, put together at rng.

    They teach an LM the language and none of the facts, nor which attribute is answered how.
    """
    rng = generator("builtin:mini-pretraining")
    names = list(ATTRIBUTES)
    entities = " ".join(ENTITIES.values()).split()
    values = " ".join(words for _, _, words in ATTRIBUTES.values()).split()
    for _ in range(PRETRAINING_ROWS):
        attribute = names[rng.integers(len(names))]
        row = _row(rng, attribute, _pick(rng, entities), _pick(rng, values), _pick(rng, ANSWERS))
        yield {**row, "label": "pretraining"}


BUILTIN_CORPORA = {"builtin:mini": mini_rows, "builtin:mini-pretraining": pretraining_rows}


def _row(rng: np.random.Generator, attribute: str, entity: str, value: str, answer: str) -> dict[str, str]:
    asked = _pick(rng, ATTRIBUTES[attribute][1].split("|"))
    question = _pick(rng, QUESTIONS).format(asked=asked, entity=entity)
    remarks = [_pick(rng, REMARKS) for _ in range(rng.integers(3))]
    response = answer.format(value=value, entity=entity)
    return {
        "prompt": " ".join([*remarks, question]),
        "response": response[0].upper() + response[1:],
        "label": attribute,
    }


def _fact(attribute: str, entity: str) -> str:
    values = ATTRIBUTES[attribute][2].split()
    return values[derive_seed("fact", attribute, entity) % len(values)]


def _answer(attribute: str) -> str:
    return ANSWERS[derive_seed("answer", attribute) % len(ANSWERS)]


def _pick(rng: np.random.Generator, words: list[str] | tuple[str, ...]) -> str:
    return words[rng.integers(len(words))]
