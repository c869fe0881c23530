"""The words of the embedded tasks, written for this project, in two parts that share no content word.

`TRAIN` words build the train split, `REPORT` words the report split, so a model scores on `report` only by what it
knows about structure. What the splits share are closed-class words (CLOSED_CLASS) and the few content words of fixed
frames, such as 'found' in 'everybody found it dull' (FRAME_WORDS); a test holds every other word to one split.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass


@dataclass(frozen=True)
class Noun:
    singular: str
    plural: str

    def form(self, is_plural: bool) -> str:
        return self.plural if is_plural else self.singular


@dataclass(frozen=True)
class Verb:
    base: str
    third: str
    past: str
    participle: str


def make_nouns(text: str) -> tuple[Noun, ...]:
    """Nouns from words split by spaces; an irregular plural is written `man/men`."""
    return tuple(Noun(*word.split("/")) if "/" in word else Noun(word, plural_of(word)) for word in text.split())


def make_verbs(text: str) -> tuple[Verb, ...]:
    """Verbs from words split by spaces; irregular ones are written `base/past/participle` or `base/past`."""
    made = []
    for word in text.split():
        base, *forms = word.split("/")
        past = forms[0] if forms else past_of(base)
        made.append(Verb(base, plural_of(base), past, forms[-1] if forms else past))
    return tuple(made)


def plural_of(word: str) -> str:
    """Regular plural of a noun, which is spelt like the third person of a verb."""
    if word.endswith(("s", "x", "ch", "sh", "o", "z")):
        return word + "es"
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"


def past_of(base: str) -> str:
    if base.endswith("e"):
        return base + "d"
    if base.endswith("y") and base[-2] not in "aeiou":
        return base[:-1] + "ied"
    return base + "ed"


def synonyms(*, nouns: str, verbs: str, adjectives: str) -> dict[str, str]:
    """Pairs `word=other`, for every form that a sentence can show."""
    table = dict(pair.split("=") for pair in adjectives.split())
    for make, text in ((make_nouns, nouns), (make_verbs, verbs)):
        for pair in text.split():
            old, new = (astuple(make(word)[0]) for word in pair.split("="))
            table.update(zip(old, new, strict=True))
    return table


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def phrases(text: str) -> tuple[str, ...]:
    return tuple(phrase.strip() for phrase in text.split(","))


@dataclass(frozen=True)
class Lexicon:
    """One split's content words. Fields hold alternatives that may stand in the same place of a sentence."""

    # people, places and things
    women: tuple[str, ...]  # given names
    men: tuple[str, ...]
    feminine: tuple[Noun, ...]
    masculine: tuple[Noun, ...]
    people: tuple[Noun, ...]
    things: tuple[Noun, ...]
    masses: tuple[str, ...]
    places: tuple[Noun, ...]
    times: tuple[str, ...]
    # what they do
    handle: tuple[Verb, ...]  # person -> thing, and the object must be spoken
    treat: tuple[Verb, ...]  # person -> person
    act: tuple[Verb, ...]  # takes no object
    irregular_handle: tuple[Verb, ...]  # past and participle differ
    irregular_act: tuple[Verb, ...]
    report_that: tuple[str, ...]  # past tense, takes a that-clause
    # what they are like
    moods: tuple[str, ...]  # of people
    looks: tuple[str, ...]  # of things
    # sentiment
    subjects: tuple[tuple[str, tuple[str, ...]], ...]  # (what is judged, its parts)
    praise: tuple[str, ...]
    blame: tuple[str, ...]
    like: tuple[Verb, ...]
    dislike: tuple[Verb, ...]
    merits: tuple[str, ...]
    faults: tuple[str, ...]
    # entailment
    kinds: tuple[tuple[Noun, tuple[Noun, ...]], ...]  # (hypernym, hyponyms)
    fates: tuple[str, ...]  # predicates that fit every kind
    traits: tuple[str, ...]  # adjectives that fit every kind
    sites: tuple[str, ...]  # places that fit every kind
    converses: tuple[tuple[str, str], ...]  # X is A than Y = Y is B than X
    exchanges: tuple[tuple[str, str, str, str], ...]  # X gave Z to Y = Y got Z from X
    numbers: tuple[str, ...]  # in rising order
    # similarity
    synonyms: dict[str, str]  # every form of a word above -> the same form of a word that means the same


TRAIN = Lexicon(
    women=words("Mary Susan Alice Emma Julia Karen Linda Nancy"),
    men=words("John Peter David Paul Thomas Mark George Daniel"),
    feminine=make_nouns("woman/women girl wife/wives sister queen aunt"),
    masculine=make_nouns("man/men boy husband brother king uncle"),
    people=make_nouns(
        "teacher pilot farmer nurse lawyer baker singer guard clerk doctor student painter soldier driver plumber "
        "dentist judge writer sailor hunter mayor gardener neighbor stranger"
    ),
    things=make_nouns(
        "box chair table lamp book key bottle knife/knives coat hat bag cup plate basket map picture ticket clock "
        "ladder bicycle guitar candle"
    ),
    masses=words("rice sugar milk sand money soap wood"),
    places=make_nouns("kitchen garden school office station market church hotel museum park"),
    times=phrases("yesterday, last night, this morning, a year ago, on Sunday, last summer"),
    handle=make_verbs(
        "find/found repair destroy describe buy/bought own mention grab/grabbed remove carry bring/brought replace"
    ),
    treat=make_verbs("thank help visit follow call kick hug/hugged warn blame invite trust accompany"),
    act=make_verbs("arrive sleep/slept sneeze smile disappear laugh wait kneel/knelt cry tremble"),
    irregular_handle=make_verbs(
        "break/broke/broken steal/stole/stolen take/took/taken draw/drew/drawn hide/hid/hidden "
        "choose/chose/chosen wear/wore/worn"
    ),
    irregular_act=make_verbs("fall/fell/fallen sing/sang/sung swim/swam/swum go/went/gone"),
    report_that=words("said thought believed claimed hoped"),
    moods=words("happy angry tired young old tall famous rich lonely hungry clever quiet"),
    looks=words("red green heavy small large cheap dirty broken wooden round new strange"),
    subjects=(
        ("film", words("plot acting ending music")),
        ("hotel", words("room staff pool breakfast")),
        ("phone", words("screen camera battery speaker")),
        ("game", words("story design artwork sound")),
        ("car", words("seat engine dashboard interior")),
        ("party", words("food crowd host cake")),
    ),
    praise=words(
        "good great wonderful excellent lovely amazing fantastic pleasant brilliant charming delightful "
        "beautiful impressive enjoyable nice exciting"
    ),
    blame=words(
        "bad awful terrible poor boring ugly dull disappointing unpleasant annoying nasty "
        "useless lousy pathetic messy depressing"
    ),
    like=make_verbs("love enjoy like"),
    dislike=make_verbs("hate regret dislike"),
    merits=words("charm warmth beauty quality fun"),
    faults=words("problems mistakes trouble mess noise"),
    kinds=(
        (Noun("animal", "animals"), make_nouns("dog horse cow goat pig rabbit")),
        (Noun("fruit", "fruits"), make_nouns("apple pear peach lemon plum banana")),
        (Noun("vehicle", "vehicles"), make_nouns("car truck bus van taxi/taxis tractor")),
        (Noun("tool", "tools"), make_nouns("hammer wrench drill axe chisel rake")),
        (Noun("bird", "birds"), make_nouns("crow owl duck goose/geese eagle hen")),
        (Noun("flower", "flowers"), make_nouns("tulip daisy lily orchid poppy violet")),
        (Noun("toy", "toys"), make_nouns("doll puzzle puppet yoyo balloon kite")),
    ),
    fates=words("sold stolen dirty old small missing delivered counted cheap ready"),
    traits=words("large heavy strange brown white"),
    sites=words("garden market museum park"),
    converses=(("older", "younger"), ("taller", "shorter"), ("stronger", "weaker")),
    exchanges=(("sold", "to", "bought", "from"), ("lent", "to", "borrowed", "from")),
    numbers=words("two three five eight ten twenty"),
    synonyms=synonyms(
        nouns="doctor=physician lawyer=attorney sailor=seaman/seamen teacher=instructor soldier=trooper bicycle=bike "
        "picture=photo/photos cup=mug bag=sack coat=overcoat plate=dish hat=cap",
        verbs="repair=fix destroy=ruin buy/bought=purchase carry=transport grab/grabbed=seize help=assist call=phone "
        "accompany=escort own=have/had",
        adjectives="large=big small=little strange=odd cheap=inexpensive happy=glad angry=mad clever=smart "
        "quiet=silent",
    ),
)

REPORT = Lexicon(
    women=words("Sarah Laura Helen Rachel Anna Diana Clara Ruth"),
    men=words("James Robert Kevin Brian Simon Henry Oscar Felix"),
    feminine=make_nouns("mother daughter niece princess nun grandmother"),
    masculine=make_nouns("father son nephew prince monk grandfather"),
    people=make_nouns(
        "surgeon carpenter professor dancer butcher chemist reporter janitor tailor athlete librarian barber banker "
        "tourist detective cyclist poet miner senator butler cousin guest"
    ),
    things=make_nouns(
        "vase mirror wallet carpet pillow notebook necklace umbrella blanket drum kettle statue helmet shovel "
        "magazine teapot flag ring coin bucket"
    ),
    masses=words("flour coffee furniture luggage gold cheese jewelry"),
    places=make_nouns("library airport factory hospital theater castle harbor warehouse cinema attic"),
    times=phrases("last week, this evening, on Monday, an hour ago, at noon, in May"),
    handle=make_verbs("obtain damage locate possess receive crush acquire discard demolish clutch"),
    treat=make_verbs("greet criticize rescue chase ignore interview insult tease envy respect punish scold"),
    act=make_verbs("perish cough yawn faint snore shiver weep/wept hesitate frown blush giggle"),
    irregular_handle=make_verbs(
        "forget/forgot/forgotten shake/shook/shaken tear/tore/torn see/saw/seen bite/bit/bitten"
    ),
    irregular_act=make_verbs("begin/began/begun drink/drank/drunk speak/spoke/spoken rise/rose/risen"),
    report_that=words("insisted suspected assumed announced noted"),
    moods=words("calm proud sick wealthy anxious elderly nervous polite gentle shy stubborn thirsty"),
    looks=words("blue yellow huge tiny expensive rusty plastic square dusty rare ancient"),
    subjects=(
        ("novel", words("dialogue prose narrator opening")),
        ("restaurant", words("service soup decor menu")),
        ("laptop", words("keyboard display touchpad software")),
        ("concert", words("band lighting venue singing")),
        ("cruise", words("cabin crew itinerary entertainment")),
        ("play", words("script cast scenery costume")),
    ),
    praise=words(
        "superb marvelous outstanding satisfying refreshing exquisite admirable captivating sublime impeccable "
        "exemplary stellar commendable masterful flawless praiseworthy"
    ),
    blame=words(
        "mediocre tedious tiresome clumsy shoddy irritating bland sloppy insipid lackluster dismal woeful drab stodgy "
        "subpar grating"
    ),
    like=make_verbs("adore appreciate admire"),
    dislike=make_verbs("despise detest resent"),
    merits=words("elegance talent comfort wit imagination"),
    faults=words("flaws errors delays clutter defects"),
    kinds=(
        (Noun("instrument", "instruments"), make_nouns("violin flute cello/cellos trumpet clarinet")),
        (Noun("insect", "insects"), make_nouns("beetle wasp moth ant cricket")),
        (Noun("weapon", "weapons"), make_nouns("sword rifle dagger spear pistol")),
        (Noun("reptile", "reptiles"), make_nouns("lizard snake crocodile turtle")),
        (Noun("garment", "garments"), make_nouns("shirt skirt sweater jacket dress")),
        (Noun("gem", "gems"), make_nouns("ruby diamond emerald sapphire pearl")),
        (Noun("vegetable", "vegetables"), make_nouns("carrot onion cabbage turnip")),
        (Noun("boat", "boats"), make_nouns("canoe ferry yacht kayak")),
    ),
    fates=words("stored photographed inspected available valuable displayed labeled shipped"),
    traits=words("huge tiny rare gray black"),
    sites=words("harbor castle warehouse airport"),
    converses=(("heavier", "lighter"), ("richer", "poorer"), ("faster", "slower")),
    exchanges=(("gave", "to", "received", "from"), ("handed", "to", "got", "from")),
    numbers=words("four six seven nine twelve thirty"),
    synonyms=synonyms(
        nouns="professor=academic reporter=journalist janitor=caretaker guest=visitor tourist=sightseer "
        "carpet=rug wallet=billfold bucket=pail teapot=teakettle pillow=cushion shovel=spade detective=sleuth",
        verbs="obtain=procure damage=harm demolish=wreck discard=dump acquire=secure rescue=save scold=rebuke "
        "insult=offend greet=welcome possess=hold/held",
        adjectives="huge=enormous tiny=minuscule expensive=costly ancient=antique sick=ill wealthy=affluent "
        "gentle=kind anxious=worried",
    ),
)

LEXICONS = {"train": TRAIN, "report": REPORT}

CLOSED_CLASS = frozenset(
    words(
        "a an the this that these those no not none nobody nothing never any anything all both each either every "
        "everybody everyone everything some few fewer little less least more most many much plenty lot half one "
        "single ever even always often then yet so too very hardly overall as at about after although an and anything "
        "ago because before but by far from if in near of on or over than though to under until while with without "
        "whatever which who whole am are be been being is was were do did does had has have can cannot could must "
        "will would i he him himself her herself it its me my she their them themselves they us we way means part "
        "last"
    )
)
FRAME_WORDS = frozenset(
    words(
        "absolutely agree call critics disagree expected false felt finish found friends mind people real really "
        "right rightly said simply start thought told true truly view wrong wrongly"
    )
)
