"""Kinds of synthetic question about numbers and facts: each a function from randomness to a Topic."""

from random import Random

from specforge.data.tables import ANIMALS, COUNTRIES, DISHES, NAMES, SIZES, THINGS, UNITS, WEEK
from specforge.data.wording import Topic, follow, say, shuffled


def word_problem(rng: Random) -> Topic:
    name, (thing, holder) = rng.choice(NAMES), rng.choice(THINGS)
    have, packs, each, gone = (rng.randint(*bounds) for bounds in ((2, 30), (2, 9), (2, 12), (1, 5)))
    words = dict(n=name, t=thing, h=holder, a=have, p=packs, e=each, g=gone, b=packs * each)
    words |= dict(s=have + packs * each, r=have + packs * each - gone, d=2 * (have + packs * each - gone))
    ask = say(
        rng,
        "{n} [has|owns|starts with] {a} {t}. {n} [buys|gets|finds] {p} {h} with {e} {t} each and [gives "
        "away|loses|sells] {g}. [How many {t} does {n} have now?|How many {t} are left?|What is the final "
        "number of {t}?]",
        **words,
    )
    answer = say(
        rng,
        "[First, the {h}: {p} times {e} is {b}.|The {p} {h} hold {p} * {e} = {b} {t}.|{p} {h} of {e} make "
        "{b} {t}.] [Together with the first {a} that is {a} + {b} = {s}.|Adding the {a} from the start "
        "gives {s}.|Then {a} plus {b} makes {s}.] [After|Now we take away the {g}. After] that {n} has {s} "
        "- {g} = {r}. [So the answer is {r} {t}.|The answer is {r}.|In the end {n} has {r} {t}.]",
        **words,
    )
    more = [
        follow(
            rng,
            "[what if {n} then doubles them?|how many would twice as many be?]",
            "[Twice that number is|Doubling {r} gives|Two times {r} is] 2 * {r} = {d}. [So {n} would have "
            "{d} {t}|The new answer is {d}], which is {r} more than [before|in the first answer].",
            **words,
        ),
        follow(
            rng,
            "[can you show only the sums?|write that as one line, please.]",
            "[Here it is in one line|In short|As a single sum]: {a} + {p} * {e} - {g} = {r}. [The product "
            "comes first|Multiply before you add], [then|and after that] the rest [from left to right|in "
            "order].",
            **words,
        ),
    ]
    return Topic(ask, answer, shuffled(rng, more))


def country(rng: Random) -> Topic:
    country, capital, region, language, known = rng.choice(COUNTRIES)
    words = dict(c=country, k=capital, r=region, l=language, f=known)
    ask = say(
        rng,
        "[What is the capital of {c}?|Which city is the capital of {c}?|Tell me about {c} and its "
        "capital.|Can you name the capital of {c}?|Where is {c}, and what is its capital?]",
        **words,
    )
    answer = say(
        rng,
        "[The capital of {c} is {k}.|{k} is the capital of {c}.|{c} has {k} as its capital.] [The "
        "country|It|{c}] [lies|is found|can be found] in {r}, [and many people there speak {l}|where {l} is "
        "spoken|and its main language is {l}]. [{c}|The country] is [well known|famous|loved] [all over the "
        "world|far beyond its borders|around the world] for {f}.",
        **words,
    )
    more = [
        follow(
            rng,
            "[what language do they speak there?|which language should I learn before I go there?]",
            "[Most people there speak {l}.|The main language of {c} is {l}.|In {k} you will mostly hear "
            "{l}.] [A few words|Some simple phrases|A greeting and a thank you] in {l} will [make your trip "
            "easier|be welcome|open many doors], [even if many people know some English|and people will be "
            "glad to help].",
            **words,
        ),
        follow(
            rng,
            "[what is it known for?|what should I see or try there?]",
            "[You should not miss|Many visitors come for|People often praise] {f}. [Start in {k}|Spend two "
            "days in {k}], [then|and after that] [travel slowly through|go and see|explore] the [rest of "
            "the country|small towns|quiet parts of {c}].",
            **words,
        ),
    ]
    return Topic(ask, answer, shuffled(rng, more))


def animal(rng: Random) -> Topic:
    animal, group, colour, food, home, skill = rng.choice(ANIMALS)
    words = dict(a=animal, g=group, c=colour, f=food, h=home, s=skill)
    ask = say(
        rng,
        "[[Describe the {a}|Tell me about the {a}|I want to learn about the {a}][.| in a few words.| in two "
        "or three sentences.| as for a child.]|[What does the {a} look like|What do you know about the "
        "{a}|What is special about the {a}]?]",
        **words,
    )
    answer = say(
        rng,
        "[The {a} is {g}|The {a} belongs to a well known group: it is {g}] [with a {c} body|that is mostly "
        "{c}|and its colour is {c}]. It [eats|likes to eat|mostly feeds on] {f} and [lives|makes its "
        "home|can be found] {h}. [Many people like it because|It is special because|You may be surprised "
        "that] it can {s}[.|, even when it is young.|, which helps it every day.]",
        **words,
    )
    more = [
        follow(
            rng,
            "[what does it eat?|what is its food?]",
            "[It eats|Mostly|Its food is mainly] {f}. [When food is hard to find|In the cold months|On a "
            "good day] the {a} [eats whatever it can get|needs less than you think|looks for food for many "
            "hours] [near its home|and then rests] {h}.",
            **words,
        ),
        follow(
            rng,
            "[where does it live?|where can I see one?]",
            "[You can find it|It lives|The {a} is at home] {h}. [Be quiet and patient|Go early in the "
            "morning|Take a guide with you], [and|and with some luck] you may see [a {c} shape|something "
            "{c}] and watch it {s}.",
            **words,
        ),
    ]
    return Topic(ask, answer, shuffled(rng, more))


def recipe(rng: Random) -> Topic:
    dish, base, extras, heat = rng.choice(DISHES)
    first, second, third = rng.sample(extras, 3)
    words = dict(d=dish, b=base, x=first, y=second, z=third, h=heat, m=rng.choice((5, 8, 10, 12, 15, 20, 25)))
    ask = say(
        rng,
        "[How do I make|How can I cook|Give me a short recipe for|What are the steps to make|Teach me to "
        "make] {d}[?| with {x}?| for two people?| with {x} and {y}?]",
        **words,
    )
    answer = say(
        rng,
        "[Here are the steps|It is easy|Follow these steps][:| for two people:]\n1. [Prepare|Take|Wash and "
        "prepare] {b}.\n2. [Add|Mix in|Stir in] {x} and {y}[| with a little salt| slowly].\n3. {h} for "
        "[about |around |]{m} minutes.\n4. [Top it with|Finish with|Serve it with] {z}[| and enjoy| while "
        "it is warm].",
        **words,
    )
    more = [
        follow(
            rng,
            "[what can I use instead of {x}?|I have no {x}. What now?]",
            "[No problem.|That is fine.|Do not worry.] [Use {z} instead|Leave it out and take more {y}|A "
            "little more {y} works too]. [The taste will be a bit different|It will be milder], but {d} [is "
            "still good|works well that way|stays just as simple].",
            **words,
        ),
        follow(
            rng,
            "[how long does it take?|how long must I wait?]",
            "[You need|It takes|Plan] [about|around] {m} minutes [on the heat|for step three] and "
            "[five|ten] more to [prepare|get] {b}. [Check it now and then|Do not hurry|Taste it before you "
            "serve it], [because|since] every kitchen is [different|not the same].",
            **words,
        ),
    ]
    return Topic(ask, answer, shuffled(rng, more))


def units(rng: Random) -> Topic:
    big, small, factor = rng.choice(UNITS)
    count, other = rng.sample(range(2, 31), 2)
    words = dict(b=big, s=small, f=factor, n=count, r=count * factor, o=other, q=other * factor)
    words["m"] = rng.choice(("more", "a larger number") if other > count else ("less", "a smaller number"))
    ask = say(
        rng,
        "[How many {s} are {n} {b}?|Convert {n} {b} to {s}.|What is {n} {b} in {s}?|I have {n} {b}. How "
        "many {s} is that?]",
        **words,
    )
    answer = say(
        rng,
        "[To convert {b} to {s}, multiply by {f}.|Each of the {b} is worth {f} {s}, so we multiply by "
        "{f}.|The rule is simple: one step from {b} to {s} means times {f}.] [That gives|So we get|The sum "
        "is] {n} * {f} = {r}. [Therefore|In other words|So] {n} {b} [are|make|equal] {r} {s}. [You can "
        "check this with a calculator|The number grows, since {s} are smaller than {b}|It is a good idea to "
        "remember the {f}].",
        **words,
    )
    more = [
        follow(
            rng,
            "[what about {o}?|and {o} {b}?]",
            "[The same rule holds|We use the same factor|Again we multiply by {f}]: {o} * {f} = {q}. So {o} "
            "{b} [are|make] {q} {s}, [which is|that is] {m} than before.",
            **words,
        ),
        follow(
            rng,
            "[how do I go back?|how does the other way work?]",
            "[To go back|For the other direction|The other way round], divide by {f}[ instead|]. [For "
            "example|With your number], {r} / {f} = {n}, so {r} {s} [are|make] {n} {b} [again|as before].",
            **words,
        ),
    ]
    return Topic(ask, answer, shuffled(rng, more))


def compare(rng: Random) -> Topic:
    adjective, superlative, items = rng.choice(SIZES)
    low, high = sorted(rng.sample(range(len(items)), 2))
    pair = [items[low], items[high]]
    rng.shuffle(pair)
    words = dict(j=adjective, u=superlative, h=items[high], l=items[low], x=pair[0], y=pair[1], t=items[-1])
    words["z"] = "yes" if pair[0] == items[high] else "no"
    ask = say(
        rng,
        "[Is {x} {j} than {y}?|True or not: {x} is {j} than {y}?|Would you say that {x} is {j} than "
        "{y}?|Can it be that {x} is {j} than {y}?]",
        **words,
    )
    answer = say(
        rng,
        "{z}[, |: ]{h} is {j} than {l}. [You can see it at once when you put them side by side|Most people "
        "would agree|This is easy to check|It is not even close], [and the difference is large|so there is "
        "little doubt|although both have their good sides]. [So the answer is|In short:|My answer is] {z}.",
        **words,
    )
    more = [
        follow(
            rng,
            "[why is that?|how can you be sure?]",
            "[Look at|Just think of|Compare] {l} first, and then at {h}. [Nobody would call {l} {j}|The "
            "second one is simply {j}|You do not need to measure them]. [That is why|For this reason] I "
            "said {z}.",
            **words,
        ),
        follow(
            rng,
            "[and which is the {u} you know?|what would be the {u} of all?]",
            "[From my short list|Of all I can think of|If I had to choose] it is {t}. [It is {j} than most "
            "things|Few things come close|Nothing else on the list comes near], [and|but] {l} is [far "
            "behind|not even close].",
            **words,
        ),
    ]
    return Topic(ask, answer, shuffled(rng, more))


def weekday(rng: Random) -> Topic:
    start, step, other = rng.randrange(7), rng.randint(2, 20), rng.randint(2, 6)
    end, full, rest = WEEK[(start + step) % 7], step // 7, step % 7
    words = dict(
        d=WEEK[start], n=step, e=end, w=full * 7, k=rest, o=other, b=WEEK[(start + step - other) % 7]
    )
    ask = say(
        rng,
        "[Today is {d}. What day is it in {n} days?|Which day comes {n} days after {d}?|If it is {d} now, "
        "what day will it be {n} days later?|Count {n} days on from {d}. Which day is it?]",
        **words,
    )
    far = "[{n} days are {w} days, full weeks, and {k} more|We drop {w} of the {n} days and count {k}]"
    near = "[{n} days are less than a week|We simply count {n} days on]"
    answer = say(
        rng,
        (far if full else near)
        + ". [Starting from|Counting on from] {d}, [we reach|we come to|that brings us to] "
        "{e}. [So the answer is {e}.|It will be {e}.|That day is {e}, then.] [The trick is|It helps to "
        "know] that the same day [comes back|returns] every 7 days.",
        **words,
    )
    more = [
        follow(
            rng,
            "[and {o} days before that?|what is {o} days earlier?]",
            "[Going back|If we step back|Counting back] {o} days from {e} [brings us to|we find|gives] {b}. "
            "[So it would be {b}|The earlier day is {b}], [as you can check on any calendar|if I counted "
            "well].",
            **words,
        ),
        follow(
            rng,
            "[how many weeks is that?|is that more than a week?]",
            "[A week has 7 days|One week is 7 days], so {n} days are "
            + f"{full} full "
            + ("week" if full == 1 else "weeks")
            + " and {k} [more|extra] days. [That is why|This is how] we [end on|come to] {e}.",
            **words,
        ),
    ]
    return Topic(ask, answer, shuffled(rng, more))


FACT_KINDS = (word_problem, country, animal, recipe, units, compare, weekday)
