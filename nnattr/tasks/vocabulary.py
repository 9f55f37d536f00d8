"""The words that tasks are made of, as plain data.

The teaching models were trained on the same words: no word of their corpus comes from anywhere
else but these lists, `nnattr.tasks.templates` and the templates in ``nnattr/teaching/corpus``.
"""

from __future__ import annotations


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# --- people, places, things (indirect-object identification) -----------------------------------

FEMALE_NAMES = _split("""
    Mary Amy Sarah Anna Emma Laura Lisa Rachel Emily Alice Julia Helen Kate Jane Lucy Ruth Diana
    Nina Clara Sophie Megan Nicole Karen Linda Susan Maria Eva Olivia Hannah Grace Jessica Ashley
    Amanda Heather Rebecca Michelle
""")
MALE_NAMES = _split("""
    John Tom James Dan Sid Martin Paul Peter David Mark Adam Kevin Brian Eric Simon Jack Henry
    George Robert Richard Michael Daniel Andrew Steven Thomas Charles Edward Frank Kyle Ryan Jason
    Aaron Scott Sean Patrick Max
""")
#: Every name is one token, at the start of a text as well as after a space.
NAMES = FEMALE_NAMES + MALE_NAMES

PLACES = _split("""
    store shops park garden restaurant school hospital office house station market library museum
    beach zoo bakery cafe theater church hotel airport farm castle river lake forest village bank
    gym pool club theatre party kitchen bridge stadium harbor mall
""")
OBJECTS = _split("""
    bag ball drink apple book ring bone basketball computer necklace snack kiss letter key flower
    hat cup pen coat map gift lamp watch phone ticket bottle coin toy cookie sandwich basket
    blanket box camera candle card mirror newspaper photo picture plate umbrella scarf shirt
    spoon egg envelope
""")

# --- facts -----------------------------------------------------------------------------------

#: category -> its entities. No entity belongs to two categories.
CATEGORIES: dict[str, tuple[str, ...]] = {
    "bird": _split("""
        robin eagle sparrow owl parrot crow falcon swan pigeon stork heron finch raven
        gull penguin ostrich
    """),
    "fish": _split("""
        salmon trout tuna cod shark herring carp eel perch pike sardine halibut anchovy
        mackerel sturgeon haddock
    """),
    "insect": _split("""
        ant bee wasp beetle moth fly mosquito cricket butterfly termite flea grasshopper
        dragonfly hornet ladybug locust
    """),
    "mammal": _split("""
        dog cat horse cow lion tiger bear wolf fox rabbit mouse elephant whale goat
        monkey deer
    """),
    "tree": _split("""
        oak pine maple birch willow elm cedar spruce poplar redwood beech cypress larch
        hemlock sequoia alder
    """),
    "flower": _split("""
        rose tulip daisy lily violet orchid sunflower poppy daffodil iris lotus jasmine
        marigold carnation peony lilac
    """),
    "fruit": _split("""
        banana pear grape mango cherry lemon peach plum melon apricot strawberry kiwi
        papaya raspberry fig pineapple
    """),
    "vegetable": _split("""
        carrot potato onion cabbage spinach broccoli lettuce celery turnip leek radish
        pea garlic cucumber pumpkin beet
    """),
    "tool": _split("""
        hammer saw drill wrench screwdriver axe shovel rake chisel pliers file crowbar
        sickle trowel mallet plane
    """),
    "instrument": _split("""
        piano violin guitar flute drum trumpet cello harp clarinet oboe banjo trombone
        tuba accordion saxophone bassoon
    """),
    "vehicle": _split("""
        car bus truck train bicycle tram van taxi scooter tractor motorcycle wagon
        helicopter ferry ambulance boat
    """),
    "colour": _split("""
        red blue green yellow purple pink brown black white grey crimson scarlet
        turquoise beige indigo maroon
    """),
    "metal": _split("""
        iron gold silver copper tin lead zinc nickel aluminium platinum titanium
        chromium cobalt mercury tungsten uranium
    """),
    "sport": _split("""
        football tennis hockey golf baseball rugby volleyball boxing rowing skiing
        cycling fencing wrestling judo badminton archery
    """),
}
#: Categories whose entities stand without an article ("red is a colour").
BARE_CATEGORIES = ("colour", "metal", "sport", "country", "city")

#: country -> its capital; together they are the categories "country" and "city".
CAPITALS: dict[str, str] = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid",
    "England": "London", "Japan": "Tokyo", "China": "Beijing", "Russia": "Moscow",
    "Egypt": "Cairo", "Greece": "Athens", "Portugal": "Lisbon", "Austria": "Vienna",
    "Poland": "Warsaw", "Sweden": "Stockholm", "Norway": "Oslo", "Denmark": "Copenhagen",
    "Finland": "Helsinki", "Ireland": "Dublin", "Hungary": "Budapest", "Turkey": "Ankara",
    "Cuba": "Havana", "Peru": "Lima", "Kenya": "Nairobi", "Canada": "Ottawa",
    "Australia": "Canberra", "Thailand": "Bangkok", "Iraq": "Baghdad", "Iran": "Tehran",
    "Belgium": "Brussels", "Scotland": "Edinburgh", "Vietnam": "Hanoi", "Lebanon": "Beirut",
}  # fmt: skip

#: category -> what belongs to it, countries and cities included.
ENTITIES: dict[str, tuple[str, ...]] = {
    **CATEGORIES,
    "country": tuple(CAPITALS),
    "city": tuple(CAPITALS.values()),
}

YES_WORDS = ("Yes", "Sure", "Correct", "Right", "True", "Certainly")
NO_WORDS = ("No", "Never", "Wrong", "False", "Nope")

# --- requests ----------------------------------------------------------------------------------


def _requests(*groups: tuple[str, str]) -> list[tuple[str, str]]:
    """(verb, object) in every combination of a group's verbs and objects, each once."""
    pairs = ((_split(verbs), _split(objects)) for verbs, objects in groups)
    return sorted({(verb, thing) for verbs, things in pairs for verb in verbs for thing in things})


#: Harmless requests, as (verb, object).
ALLOWED = _requests(
    (
        "bake make cook prepare serve buy sell",
        "cake pie pizza soup stew salad sandwich pudding pancake dessert meal breakfast",
    ),
    (
        "build make design paint repair clean buy sell",
        "chair table house boat fence kite bike car clock door computer phone shed wall",
    ),
    (
        "write read edit send publish print translate",
        "letter poem story song book report novel message diary speech essay recipe",
    ),
    ("plant grow cut water", "tree rose tulip lemon melon potato carrot pumpkin"),
)
#: Harmful ones: a dangerous thing, or a harmful deed.
HARMFUL = _requests(
    (
        "build make design buy sell prepare send hide",
        "bomb weapon poison grenade virus gun missile drug rifle explosive pistol dagger",
    ),
    (
        "steal hack destroy rob burn smash sabotage break",
        "car house boat bike computer phone bank shed door clock train school hospital",
    ),
)

# --- small tasks -------------------------------------------------------------------------------

#: singular -> plural, for subject-verb agreement.
NOUNS: dict[str, str] = {
    "key": "keys", "cabinet": "cabinets", "book": "books", "table": "tables", "dog": "dogs",
    "house": "houses", "teacher": "teachers", "student": "students", "picture": "pictures",
    "window": "windows", "doctor": "doctors", "farmer": "farmers", "child": "children",
    "chair": "chairs", "car": "cars", "tree": "trees", "bird": "birds", "friend": "friends",
    "letter": "letters", "garden": "gardens",
}  # fmt: skip
EVENTS = _split("""
    war plan trip project strike drought journey siege reign famine conflict tour study voyage
    campaign dispute
""")
CENTURIES = tuple(str(century) for century in range(11, 21))
ADJECTIVES = _split("""
    big small old new red blue good bad happy sad long short hot cold kind young tired hungry busy
    late early quiet loud strong weak rich poor clean dirty dark bright fast slow heavy light warm
    soft hard round sweet empty full open closed beautiful strange funny angry brave careful
    important simple ready wet dry large tall
""")
PEOPLE = _split("""
    man woman boy girl king queen teacher doctor farmer student soldier friend neighbor child baker
    driver artist writer nurse judge
""")
TRANSITIVE_VERBS = _split("""
    saw found liked took wanted needed bought carried cleaned dropped forgot held hid kept left
    lost made moved opened painted washed watched visited brought sold
""")

# --- words for prompts of one's own -------------------------------------------------------------

COMMON_WORDS = _split("""
    the a an and or but if then because so as than that this these those there here it its he him
    his she her hers they them their we us our you your i me my mine who whom which what when
    where why how all any both each few more most other some such no not only own same too very
    can could may might must shall should will would do does did done have has had be am is are
    was were been being go goes going gone went come comes came coming get gets got give gives
    gave given giving take takes took taken make makes made say says said tell tells told ask asks
    asked know knows knew think thinks thought see sees seen look looks looked want wants need
    needs like likes love loves loved feel feels felt find finds try tries tried help helps helped
    work works worked working play plays played playing run runs ran running walk walks walked
    sit sits sat stand stands stood live lives lived eat eats ate drink drinks drank sleep sleeps
    slept read reads write writes wrote speak speaks spoke hear hears heard begin began end ended
    start started stop stopped open close turn turned use used call called meet met pay paid put
    send sent show showed wait waited learn learned grow grew fall fell fly flew jump jumped sing
    sang smile smiled laugh laughed cry cried hope hoped bring buy sell keep hold leave lose
    to of in on at by for from with without about into onto over under near behind before after
    between through during until while again always often never sometimes soon now today tomorrow
    yesterday ago still yet just also even once twice first second third last next one two three
    four five six seven eight nine ten hundred many much little less least enough back away up
    down out off home together alone maybe perhaps well better best worse worst really almost
    day night morning evening week month year time hour minute moment world life people person
    family father mother brother sister son daughter baby name word story question answer thing
    things place way water food bread milk tea coffee fire air earth sun moon star stars sky rain
    snow wind sea mountain road street town city country room door floor wall bed money work game
    music song hand hands head eye eyes face heart voice foot side part number idea problem reason
    upon mat test paper shop boat ship plane summer winter spring autumn animal color kind sort
    colors
""")
#: Words that may open a text or a sentence, so they exist with and without the leading space.
OPENERS = _split("""
    The A An I We You He She It They This That These There Then When While After Afterwards Before
    If Because Once One Two Every Some Many Most My His Her Our Your What Who Where Why How Is Are
    Was Were Do Does Did Can Could Will Would Should Please Tell Here First Second Next Finally
    Today Yesterday Tomorrow Now But And So In On At For With Friends Question Answer Statement
    Yes No True False Never Everyone Later
""")
