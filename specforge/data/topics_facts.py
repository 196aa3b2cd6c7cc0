"""Kinds of synthetic question about numbers and facts: each a function from randomness to a Topic."""

from random import Random

from specforge.data.tables import ANIMALS, COUNTRIES, DISHES, SIZES, WEEK
from specforge.data.wording import Topic, follow, say, shuffled


def country(rng: Random) -> Topic:
    country, capital, region, language, known = rng.choice(COUNTRIES)
    words = dict(c=country, k=capital, r=region, l=language, f=known)
    ask = say(
        rng,
        "[What is the capital of {c}?|Which city is the capital of {c}?]",
        **words,
    )
    answer = say(
        rng,
        "[The capital of {c} is {k}.|{k} is the capital of {c}.] [The country|It] [lies|is "
        "found] in {r}, [and many people there speak {l}|where {l} is spoken]. [{c}|The "
        "country] is [well known|famous] [all over the world|far beyond its borders] for {f}.",
        **words,
    )
    more = [
        follow(
            rng,
            "[what language do they speak there?|which language should I learn before I go there?]",
            "[Most people there speak {l}.|The main language of {c} is {l}.] [A few "
            "words|Some simple phrases] in {l} will [make your trip easier|be welcome], [even"
            " if many people know some English|and people will be glad to help].",
            **words,
        ),
        follow(
            rng,
            "[what is it known for?|what should I see or try there?]",
            "[You should not miss|Many visitors come for] {f}. [Start in {k}|Spend two days "
            "in {k}], [then|and after that] [travel slowly through|go and see] the [rest of "
            "the country|small towns].",
            **words,
        ),
    ]
    return Topic(ask, answer, shuffled(rng, more))


def animal(rng: Random) -> Topic:
    animal, group, colour, food, home, skill = rng.choice(ANIMALS)
    words = dict(a=animal, g=group, c=colour, f=food, h=home, s=skill)
    ask = say(
        rng,
        "[[Describe the {a}|Tell me about the {a}][.| in a few words.]|[What does the {a} "
        "look like|What do you know about the {a}]?]",
        **words,
    )
    answer = say(
        rng,
        "[The {a} is {g}|The {a} belongs to a well known group: it is {g}] [with a {c} "
        "body|that is mostly {c}]. It [eats|likes to eat] {f} and [lives|makes its home] {h}."
        " [Many people like it because|It is special because] it can {s}[.|, even when it is "
        "young.]",
        **words,
    )
    more = [
        follow(
            rng,
            "[what does it eat?|what is its food?]",
            "[It eats|Mostly] {f}. [When food is hard to find|In the cold months] the {a} "
            "[eats whatever it can get|needs less than you think] [near its home|and then "
            "rests] {h}.",
            **words,
        ),
        follow(
            rng,
            "[where does it live?|where can I see one?]",
            "[You can find it|It lives] {h}. [Be quiet and patient|Go early in the morning], "
            "[and|and with some luck] you may see [a {c} shape|something {c}] and watch it "
            "{s}.",
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
        "[How do I make|How can I cook] {d}[?| with {x}?]",
        **words,
    )
    answer = say(
        rng,
        "[Here are the steps|It is easy][:| for two people:]\n"
        "1. [Prepare|Take] {b}.\n"
        "2. [Add|Mix in] {x} and {y}[| with a little salt].\n"
        "3. {h} for [about |around ]{m} minutes.\n"
        "4. [Top it with|Finish with] {z}[| and enjoy].",
        **words,
    )
    more = [
        follow(
            rng,
            "[what can I use instead of {x}?|I have no {x}. What now?]",
            "[No problem.|That is fine.] [Use {z} instead|Leave it out and take more {y}]. "
            "[The taste will be a bit different|It will be milder], but {d} [is still "
            "good|works well that way].",
            **words,
        ),
        follow(
            rng,
            "[how long does it take?|how long must I wait?]",
            "[You need|It takes] [about|around] {m} minutes [on the heat|for step three] and "
            "[five|ten] more to [prepare|get] {b}. [Check it now and then|Do not hurry], "
            "[because|since] every kitchen is [different|not the same].",
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
        "[Is {x} {j} than {y}?|True or not: {x} is {j} than {y}?]",
        **words,
    )
    answer = say(
        rng,
        "{z}[, |: ]{h} is {j} than {l}. [You can see it at once when you put them side by "
        "side|Most people would agree], [and the difference is large|so there is little "
        "doubt]. [So the answer is|In short:] {z}.",
        **words,
    )
    more = [
        follow(
            rng,
            "[why is that?|how can you be sure?]",
            "[Look at|Just think of] {l} first, and then at {h}. [Nobody would call {l} "
            "{j}|The second one is simply {j}]. [That is why|For this reason] I said {z}.",
            **words,
        ),
        follow(
            rng,
            "[and which is the {u} you know?|what would be the {u} of all?]",
            "[From my short list|Of all I can think of] it is {t}. [It is {j} than most "
            "things|Few things come close], [and|but] {l} is [far behind|not even close].",
            **words,
        ),
    ]
    return Topic(ask, answer, shuffled(rng, more))


def weekday(rng: Random) -> Topic:
    start, step, other = rng.randrange(7), rng.randint(2, 20), rng.randint(2, 6)
    end, full, rest = WEEK[(start + step) % 7], step // 7, step % 7
    words = dict(d=WEEK[start], n=step, e=end, w=full * 7, k=rest, o=other, b=WEEK[(start + step - other) % 7])
    ask = say(
        rng,
        "[Today is {d}. What day is it in {n} days?|Which day comes {n} days after {d}?]",
        **words,
    )
    far = "[{n} days are {w} days, full weeks, and {k} more|We drop {w} of the {n} days and count {k}]"
    near = "[{n} days are less than a week|We simply count {n} days on]"
    answer = say(
        rng,
        (far if full else near) + ". [Starting from|Counting on from] {d}, [we reach|we come to] {e}. [So the answer "
        "is {e}.|It will be {e}.] [The trick is|It helps to know] that the same day [comes "
        "back|returns] every 7 days.",
        **words,
    )
    more = [
        follow(
            rng,
            "[and {o} days before that?|what is {o} days earlier?]",
            "[Going back|If we step back] {o} days from {e} [brings us to|we find] {b}. [So "
            "it would be {b}|The earlier day is {b}], [as you can check on any calendar|if I "
            "counted well].",
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


FACT_KINDS = (country, animal, recipe, compare, weekday)
