"""The built-in data set (`data=sample`): three small tasks, written from word tables.

This module owns the words and the way they are put together. The same tables give the same rows
in every process, so a run needs no download and can be repeated. It does not know how rows are
read, tokenised or scored: it returns dictionaries shaped like the lines of a public JSONL file
(SQuAD, SciTLDR, a polarity set), and nothing downstream can tell the difference.

In a template `{slot}` is filled in, and `[this|that]` is a wording chosen at random. No template
puts "a" before a slot, so every article agrees with its noun.
"""

import random
import re
from itertools import accumulate, product
from typing import Any, Final, NamedTuple

Row = dict[str, Any]
Words = tuple[str, ...]
Pairs = tuple[tuple[str, str], ...]
Aspect = tuple[str, str, str]

SIZES: Final[dict[str, int]] = {"train": 320, "validation": 80, "test": 80}
_TOTAL: Final = sum(SIZES.values())
_QUESTIONS_PER_PASSAGE: Final = 4
_ALTERNATIVES: Final = re.compile(r"\[([^]]*)\]")

# No two lengths share a factor, so the first 504 places differ, and with them passages and reports.
_HEADS: Final[Words] = ("Bram", "Cald", "Dor", "Fen", "Harl", "Jor", "Mar", "Quill", "Tam")
_MIDDLES: Final[Words] = ("a", "el", "en", "er", "ing", "is", "o", "um")
_TAILS: Final[Words] = ("bury", "combe", "ford", "gate", "holt", "mere", "wick")
_FIRST: Final[Words] = ("Ada", "Bruno", "Clara", "Dov", "Edda", "Felix", "Greta", "Hugo", "Ines")
_LAST: Final[Words] = ("Abelow", "Brandt", "Castor", "Dunmore", "Ekholm", "Farrow", "Galt", "Hask")
_PEOPLE: Final[Words] = tuple(f"{first} {last}" for first, last in product(_FIRST, _LAST))


def rows(task: str, split: str) -> list[Row]:
    """Return fresh rows of one split of "qa", "summarization" or "sentiment".

    Raises:
        KeyError: The task or the split does not exist.
    """
    end = dict(zip(SIZES, accumulate(SIZES.values()), strict=True))[split]
    part = _WRITERS[task]()[end - SIZES[split] : end]
    random.Random(f"{task}/{split}").shuffle(part)
    return part


def _say(rng: random.Random, templates: Words, slots: dict[str, str]) -> str:
    template = rng.choice(templates)
    template = _ALTERNATIVES.sub(lambda found: rng.choice(found[1].split("|")), template)
    return _capital(template.format(**slots))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _place(number: int) -> str:
    return "".join(part[number % len(part)] for part in (_HEADS, _MIDDLES, _TAILS))


class _Kind(NamedTuple):
    """Something to write a passage about, and the words that suit it."""

    noun: str
    name: str
    begun: str
    stands: str
    part: str
    painted: str
    things: str


class _Fact(NamedTuple):
    """What may be true of any kind, how it is told, and how it is asked for."""

    answers: Words
    told: str
    retold: str
    asked: Words


_KINDS: Final[tuple[_Kind, ...]] = (
    _Kind("town", "{place}", "founded", "lies on", "market cross", "clock tower", "wells"),
    _Kind("ship", "the Star of {place}", "launched", "is moored on", "helm", "funnel", "cabins"),
    _Kind("museum", "the {place} Museum", "opened", "stands by", "long bench", "porch", "rooms"),
    _Kind("library", "the {place} Library", "opened", "stands by", "lectern", "staircase", "desks"),
    _Kind("workshop", "the {place} Pottery", "set up", "stands by", "sign", "chimney", "kilns"),
    _Kind("garden", "{place} Garden", "laid out", "lies on", "gate", "summer house", "apple trees"),
    _Kind("observatory", "{place} Observatory", "built", "overlooks", "ladder", "dome", "lenses"),
    _Kind("lighthouse", "the {place} Light", "built", "overlooks", "door", "balcony", "windows"),
    _Kind("bridge", "{place} Bridge", "built", "crosses", "railing", "toll house", "lanterns"),
    _Kind("mill", "the {place} Mill", "built", "stands by", "weathervane", "main door", "looms"),
    _Kind("school", "{place} School", "founded", "stands by", "bell frame", "hall", "classrooms"),
)
_WATERS: Final[Words] = tuple(
    f"{water} {name}"
    for water in ("Lake", "the River")
    for name in ("Orrel", "Tamsin", "Sill", "Corrow", "Mave", "Ode", "Varn", "Linnet")
)
_TREASURES: Final[Words] = tuple(
    f"a {thing} {story}"
    for thing in ("clock", "mirror", "map", "bell", "globe", "silver spoon")
    for story in ("found in a well", "won in a bet", "made by twins", "older than the country")
)
_MATERIALS: Final[Words] = ("oak", "cedar", "walnut", "copper", "bronze", "brass", "cast iron")
_COLOURS: Final[Words] = ("dark green", "crimson", "pale yellow", "navy blue", "white", "violet")

_WHERE: Final = _Fact(
    _WATERS,
    "{name} {stands} {answer}, [a day's walk|an hour by train|half a mile] from the border.",
    "Few [guidebooks|travellers] mention {name}, [an old|a quiet] {noun} that {stands} {answer}.",
    ("Which [lake or river|body of water] is {name} closest to?", "Where can {name} be found?"),
)
# Old and new years, and two halves of the people, keep two facts from sharing an answer.
_FACTS: Final[tuple[_Fact, ...]] = (
    _Fact(
        tuple(str(year) for year in range(1710, 1890)),
        "[The|This] {noun} was {begun} in {answer}, [a year of heavy snow|after a long quarrel].",
        "According to the [archive|oldest letters], the {noun} was {begun} in {answer}.",
        ("[When|In which year|In what year] was {name} {begun}?",),
    ),
    _Fact(
        tuple(str(year) for year in range(1901, 1999)),
        "After a [storm|flood|fire], the {noun} was restored in {answer}.",
        "Much of what can be seen now dates from {answer}, when the {noun} was restored.",
        ("[When|In which year] was {name} restored?", "What year saw {name} restored?"),
    ),
    _Fact(
        _PEOPLE[::2],
        "{answer}, [a teacher|an engineer|a sea captain], {begun} the {noun} with borrowed money.",
        "[The|This] {noun} was {begun} by {answer}, [a weaver|a baker], against all advice.",
        ("Who {begun} {name}?", "By whom was {name} {begun}?", "Which person {begun} {name}?"),
    ),
    _Fact(
        _PEOPLE[1::2],
        "Today {answer} is in charge of the {noun}, with a staff of [six|nine|eleven].",
        "[These days|At present] the {noun} is in the care of {answer}, who grew up nearby.",
        ("Who is in charge of {name} [today|now]?", "In whose care is {name} [today|now]?"),
    ),
    _Fact(
        _MATERIALS,
        "Its {part} is made of {answer} and [took two winters to finish|was a wedding gift].",
        "The {part}, made of {answer}, [survived the war|has never been replaced].",
        (
            "What is the {part} of {name} made of?",
            "Which material is the {part} of {name} made of?",
        ),
    ),
    _Fact(
        _COLOURS,
        "Every spring volunteers paint the {painted} {answer}, [by old custom|as the law demands].",
        "The {painted} is painted {answer}, so that it can be seen [in fog|from far away].",
        ("[What|Which] colour is the {painted} of {name}?",),
    ),
    _Fact(
        tuple(str(number) for number in range(12, 97)),
        "[The|This] {noun} has {answer} {things}, more than any other {noun} in the country.",
        "Visitors can count {answer} {things}, though [one|the smallest] is hard to find.",
        ("How many {things} [does {name} have|belong to {name}]?",),
    ),
    _Fact(
        _TREASURES,
        "[The|This] {noun} is best known for {answer}, which [children|painters] love to draw.",
        "The greatest treasure here is {answer}, [kept under glass|shown only on Sundays].",
        ("What is {name} [best known|famous] for?", "What is the greatest treasure of {name}?"),
    ),
)


def _qa() -> list[Row]:
    passages = range(_TOTAL // _QUESTIONS_PER_PASSAGE)
    return [row for number in passages for row in _passage(number)]


def _passage(number: int) -> list[Row]:
    rng = random.Random(f"qa/{number}")
    kind = rng.choice(_KINDS)
    name = kind.name.format(place=_place(number))
    slots = {**kind._asdict(), "name": name}
    facts = [_WHERE, *rng.sample(_FACTS, rng.randint(4, 7))]
    context, answers = _tell(rng, facts, slots)
    return [
        {
            "id": f"qa-{number:03}-{index}",
            "title": name.removeprefix("the "),
            "context": context,
            "question": _say(rng, facts[index].asked, slots),
            "answers": [answers[index]],
        }
        for index in rng.sample(range(len(facts)), _QUESTIONS_PER_PASSAGE)
    ]


def _tell(rng: random.Random, facts: list[_Fact], slots: dict[str, str]) -> tuple[str, list[Row]]:
    context, answers = "", []
    for fact in facts:
        answer = rng.choice(fact.answers)
        # The slot fills itself, so that the span is known even where the answer's text recurs.
        sentence = _say(rng, (fact.told, fact.retold), {**slots, "answer": "{answer}"})
        before, after = sentence.split("{answer}")
        answers.append({"text": answer, "answer_start": len(context + before)})
        context += f"{before}{answer}{after} "
    return context.rstrip(), answers


class _Field(NamedTuple):
    """A field of work; changes and results are each worded as reported and as summed up."""

    who: str
    problem: str
    detail: str
    changes: Pairs
    results: Pairs


_FIELDS: Final[tuple[_Field, ...]] = (
    _Field(
        "bus drivers",
        "For years, passengers had complained about [late|crowded] buses.",
        "The longest queues used to form near the [market hall|hospital], where three lines meet.",
        (("boarding through every door", "more entrances"), ("dropping fares", "free travel")),
        (("cut delays", "a drop in waiting"), ("raised passenger numbers", "a rise in trips")),
    ),
    _Field(
        "allotment gardeners",
        "[Two|Three] dry summers had left many of the beds almost bare.",
        "[Snails|Blackbirds] were counted as well, but their number hardly moved.",
        (("covering soil with straw", "a layer of dry stalks"), ("sowing clover", "a green cover")),
        (("raised the bean harvest", "a gain in yield"), ("lowered water use", "water savings")),
    ),
    _Field(
        "kiln technicians",
        "Too many [test plates|sample bowls] had broken before anyone could measure them.",
        "All pieces came from the same clay and were fired in the same [gas|electric] kiln.",
        (("cooling pieces overnight", "a slower chill"), ("adding crushed shells", "shell powder")),
        (("reduced cracks", "a drop in damage"), ("hardened the glaze", "a gain in toughness")),
    ),
    _Field(
        "teachers",
        "Many pupils had been arriving [tired|hungry] in the mornings.",
        "The [youngest|oldest] classes took part from the first day, the others joined later.",
        (("starting school later", "a delayed bell"), ("serving breakfast", "a morning meal")),
        (("lowered absences", "a drop in missed days"), ("raised test scores", "a gain in marks")),
    ),
    _Field(
        "forecast programmers",
        "Users had often [given up|lost patience] before the forecast map appeared.",
        "The change touched [forty|ninety] lines of code and needed no new machine.",
        (("storing finished maps", "ready images"), ("splitting the nightly job", "smaller steps")),
        (("cut loading time", "a gain in speed"), ("reduced failed updates", "a fall in errors")),
    ),
)
_AMOUNTS: Final[Pairs] = (
    ("11 percent", "over a tenth"),
    ("19 percent", "nearly a fifth"),
    ("24 percent", "almost a quarter"),
    ("35 percent", "over a third"),
    ("48 percent", "almost half"),
)
_FINDINGS: Final[Words] = (
    "{change} {result} by {percent}, {who} in {place} [report|have found|announced this week].",
    "After {weeks} weeks of tests, {who} in {place} say that {change} {result} by {percent}.",
    "Project notes, {place}, week {weeks}: {change} {result} by {percent}, according to {who}.",
)
_SUPPORTS: Final[Words] = (
    "The [work|project] took {weeks} weeks and cost less than a [used car|new bicycle].",
    "A second site, where nothing was altered, [saw no such effect|stayed the same].",
    '"We checked the figures [twice|three times]," said {person}, who [led|planned] the work.',
    "The [council|board] will decide in [May|June] whether to make it permanent.",
    "The team [warned|added] that one season is too short to be certain.",
)
_ASIDES: Final[Words] = (
    "The press visit ended with [pea soup|plum cake] and a short song.",
    "A stray [cat|goose] held up the visitors for ten minutes.",
    "Parking near the [office|main gate] remains difficult on market days.",
    "The old noticeboard was [repainted|moved] in the same week.",
)
_SUMMARIES: Final[Words] = (
    "{short} [brought|led to] {outcome} of {share} in {place}, [a trial shows|tests show].",
    "[Tests|Figures|Measurements] from {place} [link|tie] {short} to {outcome} of {share}.",
    "In {place}, {who} credit {short} with {outcome} of {share}.",
)


def _summarization() -> list[Row]:
    return [_report(number) for number in range(_TOTAL)]


def _report(number: int) -> Row:
    rng = random.Random(f"summarization/{number}")
    field = rng.choice(_FIELDS)
    slots = {"place": _place(number), "who": field.who, **_finding(rng, field)}
    return {
        "id": f"summarization-{number:03}",
        "title": _say(rng, ("[News|Notes|A report] from {place}",), slots),
        "document": _document(rng, field, slots),
        "summary": _say(rng, _SUMMARIES, slots),
    }


def _finding(rng: random.Random, field: _Field) -> dict[str, str]:
    change, short = rng.choice(field.changes)
    result, outcome = rng.choice(field.results)
    percent, share = rng.choice(_AMOUNTS)
    reported = {"change": change, "result": result, "percent": percent}
    return {**reported, "short": short, "outcome": outcome, "share": share}


def _document(rng: random.Random, field: _Field, slots: dict[str, str]) -> str:
    weeks = rng.choice(("six", "eight", "ten", "twelve"))
    slots = {**slots, "weeks": weeks, "person": rng.choice(_PEOPLE)}
    lead = [_say(rng, _FINDINGS, slots), _say(rng, (field.problem,), slots)]
    chosen = (*rng.sample(_SUPPORTS, rng.randint(2, 4)), *rng.sample(_ASIDES, rng.randint(1, 2)))
    rest = [_say(rng, (template,), slots) for template in (field.detail, *chosen)]
    rng.shuffle(lead)
    rng.shuffle(rest)
    return " ".join((*lead, *rest))


class _Tone(NamedTuple):
    """The words that carry one label; all other words serve both."""

    adjectives: Words
    feelings: Words
    verdicts: Words


class _Topic(NamedTuple):
    """Something to review, and two aspects of it."""

    did: str
    thing: str
    one: Aspect
    two: Aspect


# A side is an index: of a label, of its tone, and, after the noun, of a word in an aspect.
_LABELS: Final[Words] = ("negative", "positive")
_TONES: Final[tuple[_Tone, ...]] = (
    _Tone(
        ("dreadful", "terrible", "awful", "disappointing", "tiresome", "poor"),
        ("bored", "annoyed", "disappointed", "irritated"),
        (
            "the whole thing was not worth a penny",
            "I would never choose it again",
            "I told everyone at work to avoid it",
            "the time passed far too slowly",
        ),
    ),
    _Tone(
        ("superb", "excellent", "wonderful", "delightful", "impressive", "lovely"),
        ("charmed", "delighted", "impressed", "enchanted"),
        (
            "the whole thing was worth every penny",
            "I would gladly choose it again",
            "I told everyone at work to try it",
            "the time passed far too quickly",
        ),
    ),
)
_TOPICS: Final[tuple[_Topic, ...]] = (
    _Topic("watched", "film", ("plot", "predictable", "gripping"), ("acting", "wooden", "moving")),
    _Topic("saw", "play", ("staging", "clumsy", "clever"), ("dialogue", "stilted", "witty")),
    _Topic("ordered", "dinner", ("soup", "watery", "rich"), ("service", "rude", "prompt")),
    _Topic("had", "breakfast", ("bread", "stale", "fresh"), ("coffee", "bitter", "fragrant")),
    _Topic("read", "novel", ("opening", "dull", "vivid"), ("ending", "rushed", "touching")),
    _Topic("used", "app", ("menu", "confusing", "clear"), ("search", "useless", "fast")),
    _Topic("took", "night train", ("bunk", "cramped", "cosy"), ("staff", "grumpy", "kind")),
    _Topic("booked", "hotel", ("room", "dirty", "spotless"), ("welcome", "cold", "warm")),
    _Topic("tried", "campsite", ("shower", "broken", "hot"), ("view", "ugly", "splendid")),
    _Topic("heard", "concert", ("sound", "muddy", "crisp"), ("singer", "tuneless", "radiant")),
)
_WHEN: Final[Words] = ("last month", "on a wet Tuesday", "with my sister", "after a long week")
# A word marked "yes" sides with the label, one marked "no" against it.
_REVIEWS: Final[Words] = (
    "I {did} this {thing} {when}, and [all in all|to be honest] the {one} was {one_yes}.",
    "From the {one} to the {two}, this {thing} left me {feeling_yes}.",
    "{verdict}, because the {one} of this {thing} was {one_yes}.",
    "Not once was I {feeling_no} by this {thing}, and {verdict}.",
    "What I remember of this {thing} is the {one_yes} {one}.",
    "The {one} was {one_yes} and the {two} was {two_yes}; {verdict}.",
    "The {one} [was|may be] {one_no}, but the {two} was {two_yes} and {verdict}.",
    "[Although|Even though] the {one} of this {thing} was {one_no}, {verdict}.",
    "Friends had called the {one} {one_no}; I {did} this {thing} {when} and found it {one_yes}.",
    "I {did} this {thing} {when}, and not once was I {feeling_no}.",
    "I {did} this {thing} {when}; the {one} may have been {one_no}, but the {two} was {two_yes} "
    "and by the end [I was|we were all] {feeling_yes}.",
    "Nobody could call the {one} of this {thing} {one_no}, and {verdict}.",
    "I {did} this {thing} {when} and was {feeling_yes} [from start to finish|more than once].",
    "The {one} was never {one_no} and the {two} was not {two_no} either, so {verdict}.",
)


def _sentiment() -> list[Row]:
    rng = random.Random("sentiment")
    labels: dict[str, str] = {}
    while len(labels) < _TOTAL:
        side = len(labels) % len(_LABELS)
        labels.setdefault(_review(rng, side), _LABELS[side])
    return [
        {"id": f"sentiment-{number:03}", "text": text, "label": label}
        for number, (text, label) in enumerate(labels.items())
    ]


def _review(rng: random.Random, side: int) -> str:
    topic = rng.choice(_TOPICS)
    one, two = rng.sample((topic.one, topic.two), 2)
    slots = {
        "did": topic.did,
        "thing": topic.thing,
        "when": rng.choice(_WHEN),
        "verdict": rng.choice(_TONES[side].verdicts),
        "feeling_yes": rng.choice(_TONES[side].feelings),
        "feeling_no": rng.choice(_TONES[1 - side].feelings),
        **_judged(rng, "one", one, side),
        **_judged(rng, "two", two, side),
    }
    return _say(rng, _REVIEWS, slots)


def _judged(rng: random.Random, name: str, aspect: Aspect, side: int) -> dict[str, str]:
    noun, *own = aspect
    yes, no = (rng.choice((own[s], rng.choice(_TONES[s].adjectives))) for s in (side, 1 - side))
    return {name: noun, f"{name}_yes": yes, f"{name}_no": no}


_WRITERS: Final = {"qa": _qa, "summarization": _summarization, "sentiment": _sentiment}
