"""The pocket grammar: English-like sentences that carry several independent properties at once.

Every sentence has a feeling (adjective), a topic (nouns), a tense (verb), a number (subject), a mood (adverb), a
colour tone and an ending (place or time). Each property is drawn on its own, so a sentence alone says nothing about
*which* property is asked for: the prompt does. That is what makes adaptation interesting — a backbone that knows all
properties must be re-routed to the one a new prompt and new label words mean.
"""

from __future__ import annotations

import random

FEELING = (
    "awful gloomy nasty dreadful sad bitter dull horrid grim ugly".split(),
    "lovely cheerful delightful pleasant happy sweet bright splendid charming graceful".split(),
)
TONE = ("blue green grey silver teal".split(), "red orange yellow golden pink".split())
TOPIC = (  # (subjects, objects)
    ("farmer cow horse goat hen".split(), "barn hay fence field milk".split()),
    ("sailor captain fisher whale gull".split(), "boat harbour wave anchor net".split()),
    ("singer drummer pianist dancer band".split(), "song tune stage melody violin".split()),
    ("doctor nurse patient surgeon dentist".split(), "clinic medicine bandage fever pill".split()),
)
VERBS = "watch paint visit count follow praise carry clean guard forget".split()
PAST = "watched painted visited counted followed praised carried cleaned guarded forgot".split()
FUTURE = ("will", "shall")
MOOD = ("perhaps maybe possibly supposedly".split(), "surely certainly clearly definitely".split())
PLACES = "in the garden|near the bridge|behind the school|at the market|on the hill|under the tree".split("|")
TIMES = "at noon|in the morning|after dinner|before sunrise|on monday|during winter".split("|")
PROPERTIES = {"feeling": 2, "topic": 4, "tense": 3, "number": 2, "mood": 2, "tone": 2, "ending": 2}


def plural(noun: str) -> str:
    """Regular plural."""
    return noun + "s"


def draw_values(draw: random.Random) -> dict[str, int]:
    """One value per property, each independent and uniform."""
    return {name: draw.randrange(n) for name, n in PROPERTIES.items()}


def sentence(values: dict[str, int], draw: random.Random, shifted: bool = False) -> str:
    """A sentence with these values.

    Args:
        values: a value for every property.
        draw: source of randomness.
        shifted: use the templates that pre-training never shows (fronted endings, two adjectives on the object, an
            extra clause).
    """
    subjects, objects = TOPIC[values["topic"]]
    subject, thing = draw.choice(subjects), draw.choice(objects)
    many = values["number"] == 1
    head = plural(subject) if many else subject
    verb = draw.randrange(len(VERBS))
    if values["tense"] == 0:
        action = PAST[verb]
    elif values["tense"] == 1:
        action = VERBS[verb] if many else VERBS[verb] + "s"
    else:
        action = f"{draw.choice(FUTURE)} {VERBS[verb]}"
    feeling, tone = draw.choice(FEELING[values["feeling"]]), draw.choice(TONE[values["tone"]])
    mood = draw.choice(MOOD[values["mood"]])
    ending = draw.choice((PLACES, TIMES)[values["ending"]])
    article = "many" if many else draw.choice(("the", "a", "one"))
    if many and draw.random() < 0.5:
        article = "the"
    if shifted:
        forms = (
            f"{ending} , {article} {head} {mood} {action} the {feeling} {tone} {thing}",
            f"{mood} , and everyone knows it , {article} {tone} {head} {action} the {feeling} {thing} {ending}",
            f"{article} {head} , {feeling} and {tone} , {action} the {thing} {ending} {mood}",
            f"it is said that {article} {feeling} {head} {action} {ending} the {tone} {thing} , {mood}",
        )
    else:
        forms = (
            f"{mood} {article} {feeling} {head} {action} the {tone} {thing} {ending}",
            f"{article} {tone} {head} {mood} {action} the {feeling} {thing} {ending}",
            f"{article} {feeling} {tone} {head} {action} the {thing} {ending} {mood}",
            f"{article} {head} {action} the {tone} {feeling} {thing} {mood} {ending}",
        )
    return draw.choice(forms)


# Skills of the pre-training mixture: property → (prompt, label words) pairs.
SKILLS: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "feeling": (
        ("is this nice or nasty :", ("bad", "good")),
        ("what is the feeling :", ("negative", "positive")),
        ("rate the mood of the writer :", ("low", "high")),
        ("would you smile :", ("never", "always")),
        ("stars :", ("one", "five")),
    ),
    "topic": (
        ("what is it about :", ("farm", "sea", "music", "health")),
        ("name the subject area :", ("land", "water", "sound", "body")),
        ("which shelf :", ("first", "second", "third", "fourth")),
        ("file under :", ("north", "south", "east", "west")),
    ),
    "tense": (
        ("when does it happen :", ("before", "now", "later")),
        ("tense :", ("past", "present", "future")),
        ("which box on the calendar :", ("old", "current", "new")),
        ("clock :", ("left", "middle", "right")),
    ),
    "number": (
        ("how many :", ("single", "several")),
        ("is it one or more :", ("one", "more")),
        ("count the actors :", ("low", "high")),
        ("group or person :", ("person", "group")),
        ("alone :", ("yes", "no")),
    ),
    "mood": (
        ("how sure is the speaker :", ("unsure", "sure")),
        ("can we trust it :", ("no", "yes")),
        ("confidence :", ("weak", "strong")),
        ("is it a fact :", ("false", "true")),
        ("bet on it :", ("cold", "warm")),
    ),
    "tone": (
        ("is the colour warm or cold :", ("cold", "warm")),
        ("colour :", ("winter", "summer")),
        ("which paint :", ("second", "first")),
        ("sun or moon :", ("moon", "sun")),
    ),
    "ending": (
        ("where or when :", ("where", "when")),
        ("place or time :", ("place", "time")),
        ("does it name a spot :", ("true", "false")),
        ("map or clock :", ("map", "clock")),
        ("last words :", ("left", "right")),
    ),
}

# Downstream tasks: property, a prompt no skill has, label words no skill of that property has, shown names.
TASKS: dict[str, dict] = {
    "sentiment": {
        "property": "feeling",
        "template": "review of the day : {sentence1} verdict :",
        "label_words": ("moon", "sun"),
        "label_names": ("negative", "positive"),
        "description": "Is the adjective of feeling negative or positive?",
    },
    "certainty": {
        "property": "mood",
        "template": "witness : {sentence1} note :",
        "label_words": ("several", "person"),
        "label_names": ("unsure", "sure"),
        "description": "Does the speaker sound unsure or sure?",
    },
    "number": {
        "property": "number",
        "template": "scene : {sentence1} cast :",
        "label_words": ("water", "old"),
        "label_names": ("singular", "plural"),
        "description": "Is the subject singular or plural?",
    },
    "ending": {
        "property": "ending",
        "template": "diary : {sentence1} detail :",
        "label_words": ("strong", "music"),
        "label_names": ("place", "time"),
        "description": "Does the sentence name a place or a time?",
    },
}


def skill_example(draw: random.Random, name: str, which: int | None = None) -> tuple[str, str]:
    """(input, label word) of one skill example; ``which`` fixes the prompt."""
    values = draw_values(draw)
    options = SKILLS[name]
    prompt, words = options[draw.randrange(len(options)) if which is None else which]
    text = sentence(values, draw)
    # The prompt stands before or after the sentence, so that both places are known.
    source = f"{prompt} {text}" if draw.random() < 0.5 else f"{text} {prompt}"
    return source, words[values[name]]


def task_rows(name: str, sizes: dict[str, int], seed: int) -> dict[str, list[dict]]:
    """Balanced, distinct rows of a downstream task for every split."""
    draw = random.Random(f"{seed}-{name}")
    prop = TASKS[name]["property"]
    classes, seen, rows = PROPERTIES[prop], set(), {}
    for split, size in sizes.items():
        rows[split] = []
        while len(rows[split]) < size:
            values = draw_values(draw)
            values[prop] = len(rows[split]) % classes
            text = sentence(values, draw, shifted=True)
            if text not in seen:
                seen.add(text)
                rows[split].append({"sentence1": text, "label": values[prop]})
        draw.shuffle(rows[split])
    return rows


def vocabulary() -> list[str]:
    """All words, sorted, from everything the grammar can say."""
    words: set[str] = set()
    for groups in (FEELING, TONE, MOOD):
        words.update(word for group in groups for word in group)
    for subjects, objects in TOPIC:
        words.update([*subjects, *objects, *map(plural, subjects)])
    words.update([*VERBS, *PAST, *FUTURE, *(verb + "s" for verb in VERBS)])
    words.update(" ".join([*PLACES, *TIMES]).split())
    words.update("the a one many , and everyone knows it is said that".split())
    for options in SKILLS.values():
        for prompt, labels in options:
            words.update([*prompt.split(), *labels])
    words.update(("report", "page", "story", "department"))  # of two dropped tasks; ids must stay
    for task in TASKS.values():
        words.update([*task["template"].replace("{sentence1}", "").split(), *task["label_words"]])
    return sorted(words)
