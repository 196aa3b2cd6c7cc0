"""Kinds of synthetic question that ask for a piece of work: each a function from randomness to a Topic."""

from random import Random

from specforge.data.tables import ADVICE, FUNCTIONS, MEANINGS, NAMES
from specforge.data.wording import Topic, follow, say, shuffled


def advice(rng: Random) -> Topic:
    goal, tips = rng.choice(ADVICE)
    first, second, third, fourth = rng.sample(tips, 4)
    words = dict(g=goal, w=first, x=second, y=third, z=fourth)
    ask = say(
        rng,
        "[How can I {g}|What should I do to {g}]?",
        **words,
    )
    answer = say(
        rng,
        "[I am sorry that this is not easy for you.|That is a good wish.] [First|To begin "
        "with], {w}. [Then|Next], {x}. [Finally|Last], {y}. [Be patient with yourself|Small "
        "steps are enough], [and you will see a change|it will get better].",
        **words,
    )
    more = [
        follow(
            rng,
            "[do you have one more tip?|what else could I try?]",
            "[Yes, one more thing|You could also try this]: {z}. [It works well together with"
            " the first tip|Some people like this best], [and|but] [do not forget to|still] "
            "{w}.",
            **words,
        ),
        follow(
            rng,
            "[which of these matters most?|where should I start?]",
            "[I would start with the first one|The first tip matters most]: {w}. [When that "
            "feels normal|After some days], {x}. [The rest can wait|There is no hurry].",
            **words,
        ),
    ]
    return Topic(ask, answer, shuffled(rng, more))


def function(rng: Random) -> Topic:
    name, purpose, argument, body, example, result = rng.choice(FUNCTIONS)
    argument = rng.choice((argument, "x", "value"))
    name = rng.choice((name, f"get_{name}", f"my_{name}"))
    code = f"```python\ndef {name}({argument}):\n    return {body.format(a=argument)}\n```"
    words = dict(n=name, p=purpose, a=argument, c=code, e=example, r=result)
    ask = say(
        rng,
        "[Write a|I need a] [Python function|small Python function] [that|which] {p}[.|, please.]",
        **words,
    )
    answer = say(
        rng,
        "[Here is a|This is a] [short|small] function that {p}:\n"
        "{c}\n"
        "[For example|To test it], {n}({e}) [gives|returns] {r}. [The function|It] takes [one"
        " argument|only {a}] and [returns the result|needs no import].",
        **words,
    )
    more = [
        follow(
            rng,
            "[how do I call it?|can you show a call?]",
            "[Call it like this|You can write]:\n"
            "```python\n"
            "print({n}({e}))\n"
            "```\n"
            "[This prints|The output is] {r}, because the function {p}.",
            **words,
        ),
        follow(
            rng,
            "[how does it work?|can you explain the code?]",
            "[The function {n} takes|It takes] {a} [as its only argument|and nothing else]. "
            "[Then|Inside] the return line [does all the work|computes the result]: it {p}. "
            "[With|Given] {e} the result is {r}.",
            **words,
        ),
    ]
    return Topic(ask, answer, shuffled(rng, more))


def meaning(rng: Random) -> Topic:
    word, sense, opposite, sample = rng.choice(MEANINGS)
    words = dict(w=word, s=sense, o=opposite, x=sample, n=rng.choice(NAMES))
    ask = say(
        rng,
        "[What does the word {w} mean?|What is the meaning of {w}?]",
        **words,
    )
    answer = say(
        rng,
        "[The word {w} means|We say {w} when we mean] {s}. [Its opposite is|The opposite word"
        " is] {o}. [Here is an example|For example]: {n} [said|wrote] that {x} was {w}[.|, "
        "and we all agreed.]",
        **words,
    )
    more = [
        follow(
            rng,
            "[what is the opposite?|and a sentence with the opposite?]",
            "[The opposite of {w} is {o}.|That would be {o}.] [For example|So one could say]:"
            " [yesterday|last year] {x} was {o}, [but|and] now I would say {w}.",
            **words,
        ),
        follow(
            rng,
            "[give me another example.|can you say that in other words?]",
            "[Of course|Here is one more]: {n} [thinks|knows] that {x} is {w}, [which "
            "means|that is to say] {s}. [I think|Perhaps] [that makes it clear|you can see "
            "the meaning now].",
            **words,
        ),
    ]
    return Topic(ask, answer, shuffled(rng, more))


TASK_KINDS = (advice, function, meaning)
