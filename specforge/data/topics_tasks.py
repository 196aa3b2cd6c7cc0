"""Kinds of synthetic question that ask for a piece of work: each a function from randomness to a Topic."""

from random import Random

from specforge.data.tables import ADVICE, EVENTS, FUNCTIONS, MEANINGS, MORALS, NAMES, PLACES, RHYMES, SORTABLE
from specforge.data.wording import Topic, follow, say, shuffled


def sorting(rng: Random) -> Topic:
    numbers = rng.random() < 0.6
    items = rng.sample(range(1, 100) if numbers else SORTABLE, rng.randint(5, 8))
    done = sorted(items)
    shown, up, down = (", ".join(map(str, row)) for row in (items, done, done[::-1]))
    words = dict(i=shown, u=up, d=down, n=len(items), f=done[0], l=done[-1])
    order = (
        "[from small to large|from the smallest to the largest]"
        if numbers
        else "[by the alphabet|from a to z]"
    )
    kind = "numbers" if numbers else "words"
    ask = say(
        rng,
        f"[Sort these {kind}|Put these {kind} in order|Please order these {kind}] {order}: {{i}}.",
        **words,
    )
    answer = say(
        rng,
        f"[Here is the list {order}|In order, the {kind} are|Sorted {order}, we get]: {{u}}. "
        "[You start with|We begin with|Look for] {f}, [which comes first|the first of all], [and then go "
        "on|and continue|and move on] [step by step|one by one] [until|up to|as far as] {l}. [There are {n} "
        "in all.|All {n} are there.|]",
        **words,
    )
    more = [
        follow(
            rng,
            "[now the other way round.|can you turn the order around?]",
            f"[The other way round it is|Here are the {kind} in the opposite order|Going backwards we get]: "
            f"{{d}}. [Now "
            "{l} comes first and {f} is the last|It begins with {l} and ends with {f}].",
            **words,
        ),
        follow(
            rng,
            "[which one is the last?|which comes first and which last?]",
            "[The first is {f} and the last is {l}.|{f} comes first and {l} comes last.] [You can see "
            "that|This is clear] [from|in] the sorted list, [where|in which] all {n} [stand in order|have "
            "their place].",
            **words,
        ),
    ]
    return Topic(ask, answer, shuffled(rng, more))


def story(rng: Random) -> Topic:
    (one, two), place, moral, name = (
        rng.choice(RHYMES),
        rng.choice(PLACES),
        rng.choice(MORALS),
        rng.choice(NAMES),
    )
    words = dict(a=one, b=two, p=place, m=moral, n=name)
    ask = say(
        rng,
        "[Tell me a|Write a|I would like a] [very short|short|little] [story|tale] about [a child called "
        "{n}|{n}] and a {a}[.| in the evening.| that ends well.| with a {b} in it.]",
        **words,
    )
    answer = say(
        rng,
        "[Once there was a child called {n}|Long ago {n} lived|One morning {n} walked] {p}. [There|Near the "
        "path|Under an old tree] {n} [found|saw|met] a {a}, [small and shy|bright as the sun|as quiet as "
        "the moon], [next to|hidden behind|sitting on] a {b}. [They talked until night came|They shared "
        "some bread|At first both were afraid], and [in the end|by evening] {n} [learned|knew] that {m}.",
        **words,
    )
    more = [
        follow(
            rng,
            "[make it a rhyme, please.|can you turn that into two lines that rhyme?]",
            "[Here are two lines that rhyme|With pleasure|I will try]:\n{n} [went out and found|came home "
            "and saw|sang softly to] a {a},\n[and laid it down beside|and gently placed it by|and thought "
            "about] a {b}.",
            **words,
        ),
        follow(
            rng,
            "[what does the story teach us?|what is the meaning of it?]",
            "[The story shows|It tells us|{n} finds out] that {m}. [The {a} is only a small thing|Even a "
            "{a} can teach that], [but|and yet] [it changes the day|{n} will not forget it|the {b} was "
            "there to see it].",
            **words,
        ),
    ]
    return Topic(ask, answer, shuffled(rng, more))


def advice(rng: Random) -> Topic:
    goal, tips = rng.choice(ADVICE)
    first, second, third, fourth = rng.sample(tips, 4)
    words = dict(g=goal, w=first, x=second, y=third, z=fourth)
    ask = say(
        rng,
        "[How can I {g}|What should I do to {g}|Do you have any tips to {g}|I want to {g}. What do you "
        "advise]?",
        **words,
    )
    answer = say(
        rng,
        "[I am sorry that this is not easy for you.|That is a good wish.|Many people ask this.|You are not "
        "alone with this.] [First|To begin with|Above all], {w}. [Then|Next|Second], {x}. [Finally|Last|And "
        "if you can], {y}. [Be patient with yourself|Small steps are enough|Give it a week or two], [and "
        "you will see a change|it will get better|and be kind to yourself].",
        **words,
    )
    more = [
        follow(
            rng,
            "[do you have one more tip?|what else could I try?]",
            "[Yes, one more thing|You could also try this|There is one more idea]: {z}. [It works well "
            "together with the first tip|Some people like this best|It costs nothing], [and|but] [do not "
            "forget to|still] {w}.",
            **words,
        ),
        follow(
            rng,
            "[which of these matters most?|where should I start?]",
            "[I would start with the first one|The first tip matters most|Begin with the easiest]: {w}. "
            "[When that feels normal|After some days|Once you are used to it], {x}. [The rest can "
            "wait|There is no hurry].",
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
        "[Write a|I need a|Can you write a|Show me a] [Python function|small Python function] [that|which] "
        "{p}[.|, please.| and call it {n}.]",
        **words,
    )
    answer = say(
        rng,
        "[Here is a|This is a|You can use this] [short|small|simple] function that {p}:\n{c}\n[For "
        "example|To test it|As a check], {n}({e}) [gives|returns] {r}. [The function|It|This one] takes "
        "[one argument|only {a}|{a}] and [returns the result|needs no import|does nothing else].",
        **words,
    )
    more = [
        follow(
            rng,
            "[how do I call it?|can you show a call?]",
            "[Call it like this|You can write|Here is one call]:\n```python\nprint({n}({e}))\n```\n[This "
            "prints|The output is|You will see] {r}, because the function {p}.",
            **words,
        ),
        follow(
            rng,
            "[how does it work?|can you explain the code?]",
            "[The function {n} takes|It takes|We give it] {a} [as its only argument|and nothing else]. "
            "[Then|Inside] the return line [does all the work|computes the result]: it {p}. [With|Given] "
            "{e} the result is {r}.",
            **words,
        ),
    ]
    return Topic(ask, answer, shuffled(rng, more))


def meaning(rng: Random) -> Topic:
    word, sense, opposite, sample = rng.choice(MEANINGS)
    words = dict(w=word, s=sense, o=opposite, x=sample, n=rng.choice(NAMES))
    ask = say(
        rng,
        "[What does the word {w} mean?|What is the meaning of {w}?|Explain the word {w}[.| to a child.| "
        "with an example.]|Can you use {w} in a sentence?]",
        **words,
    )
    answer = say(
        rng,
        "[The word {w} means|We say {w} when we mean|If something is {w}, it is] {s}. [Its opposite is|The "
        "opposite word is|It is the reverse of] {o}. [Here is an example|For example|A sentence with it "
        "would be]: {n} [said|wrote|told us] that {x} was {w}[.|, and we all agreed.| on that day.]",
        **words,
    )
    more = [
        follow(
            rng,
            "[what is the opposite?|and a sentence with the opposite?]",
            "[The opposite of {w} is {o}.|That would be {o}.|We say {o} for the reverse.] [For example|So "
            "one could say|Here is a sentence]: [yesterday|last year|in winter] {x} was {o}, [but|and] now "
            "I would say {w}.",
            **words,
        ),
        follow(
            rng,
            "[give me another example.|can you say that in other words?]",
            "[Of course|Here is one more|Let me try]: {n} [thinks|knows|believes] that {x} is {w}, [which "
            "means|that is to say] {s}. [I think|Perhaps] [that makes it clear|you can see the meaning now].",
            **words,
        ),
    ]
    return Topic(ask, answer, shuffled(rng, more))


def note(rng: Random) -> Topic:
    event, reason, wish = rng.choice(EVENTS)
    to, sender = rng.sample(NAMES, 2)
    words = dict(
        e=event, r=reason, w=wish, t=to, n=sender, d=rng.choice(("today", "tonight", "tomorrow", "this week"))
    )
    ask = say(
        rng,
        "[Write|Help me write|I need] a [short|polite|friendly] [note|message] to {t} [about|because of] "
        "{e}. [My name is {n}.|Sign it with {n}.|I am {n}.]",
        **words,
    )
    answer = say(
        rng,
        "[Here is my try|Here it is|This might do|How about this]:\n[Dear|Hello|Hi] {t},\n[I am writing "
        "because of {e}|I wanted to write to you about {e}|This is a short note about {e}]. [I wanted to "
        "say that|Please know that|You should know that] {r}. [I hope|It would be nice if|I would be glad "
        "if] {w} {d}.\n[Best wishes|Kind regards|Yours|Warm greetings],\n{n}",
        **words,
    )
    more = [
        follow(
            rng,
            "[can you make it shorter?|that is too long. Can you cut it?]",
            "[Here is a shorter one|Of course|A shorter version]:\n{t}, {r}. [I hope|I would be glad if] "
            "{w} {d}. [Best|Yours|Greetings], {n}",
            **words,
        ),
        follow(
            rng,
            "[make it more formal.|can you write it more politely?]",
            "[This one is more formal|Certainly|Here is a more polite version]:\nDear {t},\n[allow me to "
            "write|please let me write] about {e}. I [would like to add|must say] that {r}.\n[With kind "
            "regards|Respectfully],\n{n}",
            **words,
        ),
    ]
    return Topic(ask, answer, shuffled(rng, more))


TASK_KINDS = (sorting, story, advice, function, meaning, note)
