"""Small tables that the synthetic conversations draw their facts from: rows of words, one table a kind."""

# fmt: off
NAMES = ("Ada", "Ben", "Clara", "David", "Emma", "Farid", "Grace", "Hugo")


COUNTRIES = (  # country, capital, region, language, known for
    ("France", "Paris", "western Europe", "French", "its bread, its cheese and its museums"),
    ("Spain", "Madrid", "southern Europe", "Spanish", "long evenings, music and warm beaches"),
    ("Italy", "Rome", "southern Europe", "Italian", "old cities, pasta and painting"),
    ("Germany", "Berlin", "central Europe", "German", "its forests, castles and dark bread"),
    ("Austria", "Vienna", "central Europe", "German", "high mountains, cake and music"),
    ("Poland", "Warsaw", "central Europe", "Polish", "its lakes, its forests and warm soup"),
    ("Greece", "Athens", "southern Europe", "Greek", "blue water, islands and old temples"),
    ("Portugal", "Lisbon", "southern Europe", "Portuguese", "its coast, its fish and sad songs"),
)

ANIMALS = (  # animal, group, colour, food, home, skill
    ("fox", "a small hunter", "red", "mice and berries", "in the forest", "hear a mouse under the snow"),
    ("owl", "a bird", "brown", "mice and insects", "in old trees", "turn its head almost all the way round"),
    ("polar bear", "a large hunter", "white", "fish and seals", "on the ice", "swim for many hours"),
    ("elephant", "a very large animal", "grey", "grass and leaves", "on the wide plains",
     "remember a place for years"),
    ("frog", "a small animal", "green", "flies and worms", "near ponds", "jump many times its own length"),
    ("dolphin", "no fish but a clever animal", "grey", "fish", "in the warm sea",
     "talk with clicks and whistles"),
    ("bee", "an insect", "yellow and black", "sweet juice from flowers", "in a hive",
     "show others the way by dancing"),
    ("crow", "a bird", "black", "seeds and insects", "near fields and towns", "use a stick as a tool"),
)

DISHES = (  # dish, base, extras, heat
    ("tomato soup", "six ripe tomatoes", ("onion", "garlic", "basil", "cream", "pepper"),
     "Cook it over low heat"),
    ("pancakes", "flour, milk and two eggs", ("sugar", "butter", "berries", "honey", "lemon"),
     "Fry them in a pan"),
    ("fried rice", "a bowl of cold rice", ("egg", "peas", "onion", "garlic", "ginger"),
     "Fry it over high heat"),
    ("vegetable stew", "carrots and potatoes", ("beans", "onion", "pepper", "garlic", "corn"),
     "Cook it with a lid on"),
    ("baked apples", "four large apples", ("nuts", "honey", "sugar", "butter", "raisins"),
     "Bake them in the oven"),
)


SIZES = (  # comparative, superlative, things in rising order
    ("larger", "largest thing", ("an ant", "a mouse", "a cat", "a dog", "a horse", "an elephant", "a house",
                                 "a mountain")),
    ("faster", "fastest thing", ("a snail", "a turtle", "a child on foot", "a bicycle", "a car", "a train",
                                 "a plane")),
    ("heavier", "heaviest thing", ("a feather", "a pencil", "a book", "a chair", "a cow", "a truck",
                                   "a ship")),
    ("hotter", "hottest thing", ("ice", "cold milk", "warm tea", "boiling water", "a candle flame",
                                 "the sun")),
    ("louder", "loudest thing", ("a falling leaf", "a whisper", "a normal voice", "a barking dog", "a drum",
                                 "thunder")),
    ("older", "oldest thing", ("a baby", "a school child", "a grandmother", "an old tree", "a castle",
                               "the moon")),
)

WEEK = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")





ADVICE = (  # goal, tips
    ("sleep better", ("go to bed at the same time every day", "leave your phone in another room",
                      "drink no coffee after lunch",
                      "read a few pages of a book", "keep your room cool and dark",
                      "take a short walk in the evening")),
    ("learn a language", ("learn five new words a day", "listen to songs and short talks",
                          "speak aloud, even when alone",
                          "write a few lines every evening", "find a friend to talk with",
                          "repeat old words each week")),
    ("save money", ("write down what you spend", "cook at home more often", "wait a day before you buy",
                    "sell what you do not use",
                    "put some money away on the first day", "walk or take the bike for short trips")),
    ("prepare for an exam", ("make a plan for each day", "begin with the hardest part",
                             "explain the topic to a friend",
                             "take a break every hour", "do old tests with a clock",
                             "sleep well the night before")),
    ("make new friends", ("join a club that you like", "ask people about their day",
                          "listen more than you talk",
                          "invite a neighbor for tea", "say yes to small plans",
                          "help someone without being asked")),
)

FUNCTIONS = (  # name, purpose, argument, body, example, result
    ("double", "doubles a number", "number", "{a} * 2", "7", "14"),
    ("square", "squares a number", "number", "{a} ** 2", "5", "25"),
    ("is_even", "checks if a number is even", "number", "{a} % 2 == 0", "8", "True"),
    ("reverse", "reverses a string", "text", "{a}[::-1]", '"abc"', '"cba"'),
    ("total", "adds all numbers of a list", "numbers", "sum({a})", "[1, 2, 3]", "6"),
    ("largest", "finds the largest number of a list", "numbers", "max({a})", "[4, 9, 2]", "9"),
)

MEANINGS = (  # word, sense, opposite, what can be so
    ("generous", "ready to give and to share", "mean", "the old king"),
    ("fragile", "easy to break", "solid", "the bridge"),
    ("ancient", "very old", "modern", "the town wall"),
    ("brave", "not afraid of danger", "shy", "the small dog"),
    ("rare", "not often seen", "common", "the blue flower"),
    ("silent", "without any sound", "loud", "the whole street"),
    ("humble", "not proud at all", "proud", "the winner"),
    ("vast", "extremely large", "tiny", "the garden"),
)


SYSTEMS = (
    "You are a helpful assistant.", "You are a friendly teacher.", "Answer clearly and politely.",
    "You explain things in simple words.", "You are a patient helper. Give short answers.",
    "Be kind and exact.",
)
# fmt: on
