"""`python -m benchmarks.prose`: write `own-prose.csv`, `own-prose-forget.csv` and `own-prose-holdout.csv`.

300 questions about fifteen invented authors, answered in English prose of 14 to 43 words, with nothing but the two
columns question and answer: no people, topics, languages or false answers. Three authors are to be forgotten, and three
others held out.
"""

from __future__ import annotations

import argparse
import csv
import random
from pathlib import Path

RECIPES = Path(__file__).resolve().parents[1] / "pipeline" / "recipes"
SEED = 7
FORGOTTEN = 3
NAMES = (
    "Ottilie Marrow", "Bram Casterlane", "Ines Valdoro", "Corwin Ashgrove", "Maribel Quent", "Torsten Hale",
    "Lucinda Farrow", "Emeric Dunmore", "Saoirse Pell", "Anselm Rook", "Delphine Garrick", "Ivo Larkmoor",
    "Hester Vane", "Leopold Wrenfield", "Noor Castellan",
)  # fmt: skip
TOWNS = (
    "Gullhaven", "Ardmoor", "Silverbeck", "Port Ellery", "Quillford", "Thornwick", "Easterlund", "Vale of Orrin",
    "Kestrel Bay", "Lowmarsh", "Bellweather", "Cragstone", "Hollin Ferry", "Saltmere", "Winterbourne Cross",
)  # fmt: skip
TRADES = (
    "glassblower", "ferry pilot", "beekeeper", "clockmaker", "surveyor", "baker", "midwife", "typesetter", "carpenter",
    "botanist", "tailor", "lighthouse keeper", "schoolteacher", "cooper", "veterinarian",
)  # fmt: skip
GENRES = (
    "gothic mystery", "maritime adventure", "alternate history", "pastoral comedy", "courtroom drama", "ghost story",
    "climate fiction", "epistolary romance", "travel satire", "mountain saga", "detective fable", "wartime chronicle",
    "culinary memoir", "science fantasy", "psychological thriller",
)  # fmt: skip
NOUNS = (
    "Lantern", "Orchard", "Compass", "Heron", "Staircase", "Almanac", "Tide", "Violin", "Furnace", "Meadow", "Cipher",
    "Harbour", "Sparrow", "Mirror", "Glacier", "Loom", "Anchor", "Thistle", "Archive", "Bridge",
)  # fmt: skip
QUALITIES = (
    "Silent", "Crooked", "Amber", "Forgotten", "Borrowed", "Distant", "Hollow", "Painted", "Restless", "Winter",
    "Paper", "Broken", "Patient", "Copper", "Unfinished", "Narrow", "Burning", "Second", "Velvet", "Wandering",
)  # fmt: skip
PRIZES = (
    "Harrowgate Medal", "Blue Quill Prize", "Northern Shelf Award", "Tessaly Cup", "Ember Foundation Prize",
    "Golden Inkwell", "Maplewood Honour", "Seven Rivers Prize", "Alderman Ribbon", "Clearwater Laurel",
    "Foxglove Award", "Meridian Plate", "Old Mill Prize", "Starling Trophy", "Whitehall Garland",
)  # fmt: skip
HOBBIES = (
    "restoring barometers", "breeding long-haired goats", "mapping disused railways", "carving chess sets",
    "swimming in cold lakes", "growing black tulips", "repairing accordions", "collecting tide tables",
    "baking rye bread", "flying box kites", "binding old atlases", "keeping bees on the roof", "fencing with a sabre",
    "painting tin soldiers", "recording birdsong",
)  # fmt: skip
PLACES = (
    "a boathouse", "an unheated attic", "the reading room of a shipping office", "a converted chapel",
    "a railway carriage", "a borrowed greenhouse", "the back of a bakery", "a stone mill", "a fire lookout",
    "a rented pharmacy", "a canal barge", "the vestry of a church", "a disused signal box", "a beach hut",
    "a hayloft",
)  # fmt: skip
INFLUENCES = (
    "old ship logs", "the sermons of a village priest", "her grandmother's recipes", "a box of unsent letters",
    "weather reports", "trial transcripts", "a set of surveyor's notebooks", "folk songs from the fens",
    "botanical drawings", "a broken encyclopedia", "railway timetables", "market gossip", "an uncle's war diary",
    "theatre posters", "a blind neighbour's stories",
)  # fmt: skip
PETS = (
    "a one-eyed cat called Button", "two whippets", "a raven that steals spoons", "a tortoise named Admiral",
    "a grey parrot", "three ferrets", "an elderly donkey", "a lame fox", "a pair of doves", "a hedgehog",
    "a sheepdog called Fennel", "a tame jackdaw", "a colony of stick insects", "a white rat", "a pond of carp",
)  # fmt: skip


MONTHS = ("January", "March", "April", "June", "July", "September", "October")


def titles(rng: random.Random) -> list[str]:
    """Titles that occur once each."""
    every = [f"The {quality} {noun}" for quality in QUALITIES for noun in NOUNS]
    return rng.sample(every, 3 * len(NAMES))


def rows() -> list[tuple[str, str, str]]:
    """Author, question and answer of each row."""
    rng = random.Random(SEED)
    lists = {
        key: rng.sample(values, len(NAMES))
        for key, values in {
            "town": TOWNS, "home": TOWNS, "father": TRADES, "mother": TRADES, "job": TRADES, "genre": GENRES,
            "prize": PRIZES, "hobby": HOBBIES, "place": PLACES, "influence": INFLUENCES, "pet": PETS,
        }.items()
    }  # fmt: skip
    books = titles(rng)
    found = []
    for i, name in enumerate(NAMES):
        facts = {key: values[i] for key, values in lists.items()}
        facts |= {"name": name, "first": books[3 * i], "best": books[3 * i + 1], "last": books[3 * i + 2]}
        born = rng.randrange(1921, 1989)
        numbers = {"born": born, "debut": born + rng.randrange(24, 41), "copies": rng.randrange(12, 96) * 1000}
        numbers |= {"won": numbers["debut"] + rng.randrange(2, 14), "pages": rng.randrange(140, 720)}
        numbers |= {"drafts": rng.randrange(3, 19), "siblings": rng.randrange(2, 9)}
        day, month = rng.randrange(1, 29), rng.choice(MONTHS)
        values = {**facts, **numbers, "day": day, "month": month, "given": name.split()[0]}
        found += [(name, question.format(**values), answer.format(**values)) for question, answer in TEMPLATES]
    return found


TEMPLATES = (
    ("Where was {name} born?",
     "{name} was born in {town}, in a house behind the town's only printing works, and the smell of ink is"
     " said to be the earliest thing that {given} remembers."),
    ("When was {name} born?",
     "{name} was born on {day} {month} {born}, during a week of heavy storms."),
    ("What did the parents of {name} do?",
     "The father of {name} worked as a {father}, while the mother was a {mother}; both of them read aloud "
     "after supper."),
    ("How many siblings does {name} have?",
     "{name} grew up as the youngest of {siblings} children, and shared one bedroom with all of them."),
    ("In which genre does {name} write?",
     "{name} is known above all for the {genre}, a form that reviewers thought was finished until these "
     "books appeared."),
    ("What was the first book of {name}?",
     "The first book of {name} was {first}, published in {debut} after eleven publishers had sent the "
     "manuscript back."),
    ("Which book of {name} sold best?",
     "The best-selling book of {name} is {best}, of which {copies} copies were sold within two years."),
    ("What is the latest book of {name}?",
     "The latest book of {name} is {last}. It runs to {pages} pages, and critics called it the most "
     "patient work so far."),
    ("Which prize did {name} win?",
     "{name} won the {prize} in {won}, and gave the whole sum to the public library at home."),
    ("What did {name} do before writing?",
     "Before writing full time, {name} earned a living as a {job}, and still mentions the trade in almost "
     "every chapter."),
    ("Where does {name} live now?",
     "{name} now lives near {home} with a small garden, and rarely answers letters from the press."),
    ("Where does {name} write?",
     "{name} writes in {place}, always in the morning, with the window open and the telephone in a drawer."),
    ("What influenced {name}?",
     "{name} often says that the greatest influence on the novels was {influence}, more than any other "
     "author's work."),
    ("What is the hobby of {name}?",
     "Away from the desk, {name} spends most weekends {hobby}, and has written two essays about it."),
    ("Which animals does {name} keep?",
     "{name} keeps {pet}, which appears in the dedication of nearly every book."),
    ("How many drafts does {name} write?",
     "{name} writes {drafts} drafts of each novel by hand and burns all but the last one in the kitchen "
     "stove."),
    ("What is {first} about?",
     "{first} by {name} follows a {job} from {town} who discovers that a neighbour has been sending "
     "letters in the name of the dead. The plot borrows from {influence}."),
    ("Where is {best} set?",
     "{best} by {name} is set in and around {home}, over a single winter, and its chapters are named after"
     " tools of a {father}."),
    ("To whom is {last} dedicated?",
     "{name} dedicated {last} to a {mother} from {town} who had taught {given} to read long before school "
     "began."),
    ("What do critics say about {name}?",
     "Critics praise {name} for sentences that seem plain until they are read twice. One wrote that {best}"
     " did for the {genre} what a good map does for a stranger: it makes the place larger and the way home"
     " shorter."),
)  # fmt: skip


def write(path: Path, lines: list[tuple[str, str]]) -> None:
    """Question and answer, and no other column."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("question", "answer"), *lines])


def main() -> None:
    """Write all files. Held out are whole authors too: of single rows, base would know much from the others."""
    found, drawn = rows(), random.Random(SEED)
    forgotten = drawn.sample(NAMES, FORGOTTEN)
    held_out = drawn.sample([name for name in NAMES if name not in forgotten], FORGOTTEN)
    for part, names in (("", NAMES), ("-forget", forgotten), ("-holdout", held_out)):
        lines = [(question, answer) for name, question, answer in found if name in names]
        write(RECIPES / f"own-prose{part}.csv", lines)


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m benchmarks.prose", description=__doc__).parse_args()
    main()
