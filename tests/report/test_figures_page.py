import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from specforge.report.figures import MAX_POINTS, PALETTE, draw
from specforge.report.page import Cache, Experiment, Manifest, Prep, Recipe, Regeneration, _funnel, inline, render
from specforge.report.rank import Evaluation, Interval, Lossless, Mismatch, Prompt, RunName, Scores, rank

HOSTILE = '"><img src=x onerror=alert(1)>'


def evaluation(ablation, lr, rounds, temperatures=("0", "1"), mismatches=()):
    scores = {}
    for temperature in temperatures:
        run = [Prompt(f"p{i}", 64, rounds + i % 5) for i in range(24)]
        mean = sum(p.tokens for p in run) / sum(p.rounds for p in run)
        by_position = [0.9, 0.8, 0.7, None]
        scores[temperature] = Scores(Interval(mean, mean - 0.2, mean + 0.2), by_position, Interval(1.2, 1.1, 1.3), run)
    lossless = Lossless(24, list(mismatches))
    return Evaluation(RunName(ablation, lr), "tiny", 4, 64, "float32", 0, 24, lossless, scores)


def experiment(evaluations, versions=({"torch": "2.9.1"},), regeneration=True):
    manifests = {}
    for index, one in enumerate(evaluations):
        recipe = Recipe(one.run.ablation, one.run.lr, {"lambda_ce": 0.5, "lambda_rkl": 0.0, "beta_hinge": 0.1})
        manifests[one.run] = Manifest(
            run=recipe,
            settings={},
            inputs={"cache": "81ab"},
            versions=versions[index % len(versions)],
            commit=None,
            steps=20,
            tokens=12345,
            draft_parameters=300_000,
            seconds=500.0,
        )
    return Experiment(
        ranking=rank(evaluations, samples=200),
        manifests=manifests,
        prep=Prep("synthetic", 100, 90, 80, 10, 10, {"empty": 10}, {}),
        regeneration=Regeneration(80, 79, 1, 2, 120, {"stop": 120}) if regeneration else None,
        cache=Cache(79, 79, 9000, 4000, 1, 0, 128, 512, 0.98, [50], [("Hi", False), ("yo", True)], None),
        config={"ablations": ("all",), "nested": {"lrs": (1, 2)}},
    )


def curves(evaluations, steps=12):
    rows = [{"step": step, "loss": 9 / step, "acceptance": step / steps} for step in range(1, steps + 1)]
    return {one.run: rows for one in evaluations}


def page(evaluations, **options):
    made = experiment(evaluations, **options)
    return render(made, draw(made.ranking, curves(evaluations)))


PAIR = [evaluation("baseline", "3e-3", 14), evaluation("mixed", "6e-3", 20)]


def test_figures_are_whole_svg_files_of_their_own():
    drawn = draw(rank(PAIR, samples=200), curves(PAIR))
    assert len(drawn) == 4
    for svg in drawn.values():
        assert ET.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
        assert not re.search(r'href="(?!#)|url\((?!#)|<!DOCTYPE|<metadata|@import', svg)
    assert "baseline lr3e-3" in drawn["ranking"]


def test_figures_are_the_same_each_time():
    first, second = (draw(rank(PAIR, samples=200), curves(PAIR)) for _ in range(2))
    assert first == second


def test_an_ablation_keeps_its_colour_whatever_its_rank():
    for order in (14, 20), (20, 14):
        pair = [evaluation("a", "3e-3", order[0]), evaluation("b", "3e-3", order[1])]
        drawn = draw(rank(pair, samples=200), curves(pair))
        for svg in drawn.values():
            assert PALETTE[0][0] in svg
            assert PALETTE[1][0] in svg
            assert PALETTE[2][0] not in svg


@pytest.mark.parametrize("temperatures", [("0",), ("0.3", "0.7", "1", "1.3")])
def test_a_panel_a_temperature(temperatures):
    runs = [evaluation("a", "3e-3", 14, temperatures)]
    drawn = draw(rank(runs, samples=200), curves(runs))
    titles = [temperature for temperature in temperatures if f"T = {temperature}, " in drawn["ranking"]]
    assert titles == list(temperatures)


def test_names_are_text_not_markup_or_mathematics():
    runs = [evaluation("<b>&$\\frac$", "3e-3", 14)]
    drawn = draw(rank(runs, samples=200), curves(runs))
    assert "&lt;b&gt;&amp;$\\frac$ lr3e-3" in drawn["ranking"]


def test_long_curves_are_thinned():
    short, long = (draw(rank(PAIR, samples=200), curves(PAIR, n))["training_curves"] for n in (250, 9000))
    assert long.count(" L ") + long.count("\nL ") < 5 * MAX_POINTS
    assert len(long) < 3 * len(short)


def test_inlined_svg_follows_the_theme_and_keeps_its_ids_apart():
    drawn = draw(rank(PAIR, samples=200), curves(PAIR))
    texts = {name: inline(name, svg) for name, svg in drawn.items()}
    ids = [found for text in texts.values() for found in re.findall(r'\bid="([^"]*)"', text)]
    assert len(ids) == len(set(ids))
    for text in texts.values():
        assert text.startswith("<svg")
        assert "var(--series-0)" in text
        assert PALETTE[0][0] not in text
        assert set(re.findall(r"(?:url\(#|href=\"#)([^)\"]*)", text)) <= set(ids)


def test_page_asks_the_network_for_nothing():
    html = page(PAIR)
    assert not re.search(r"""(?:src|href|action|data|srcset)\s*=\s*["']?\s*(?:https?:)?//""", html)
    assert not re.search(r"url\((?!#)|@import|<link|<script|<iframe|<img", html)
    names = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"https?://[^\"'\s<]*", html)) <= names


def test_page_escapes_what_it_is_given():
    html = page([evaluation(HOSTILE, "3e-3", 14, mismatches=[Mismatch(HOSTILE, 3, None)])])
    assert "<img" not in html
    assert "&lt;img" in html


def test_page_tells_ties_from_losses():
    tied = page([evaluation("a", "3e-3", 14), evaluation("b", "3e-3", 14)])
    worse = page(PAIR)
    badge = '<span class="badge">can’t tell apart</span>'
    assert badge in tied
    assert badge not in worse


def test_page_shows_versions_that_differ():
    assert "differs among runs" not in page(PAIR)
    assert "differs among runs" in page(PAIR, versions=({"torch": "2.9.1"}, {"torch": "2.10"}))


def test_page_marks_supervised_tokens_and_survives_no_regeneration():
    html = page(PAIR, regeneration=False)
    assert "Hi<mark>yo</mark>" in html
    assert "Regeneration was off" in html
    assert "lrs: [1, 2]" in html


def test_the_funnel_accounts_for_every_conversation():
    made = experiment(PAIR)
    made = replace(
        made,
        regeneration=replace(made.regeneration, conversations=80, regenerated=70, failed=4, excluded={"length": 6}),
        cache=replace(made.cache, conversations=70, refused=3, nothing_learnt=5, sequences=63, empty=9),
    )
    steps = dict((name, (count, others)) for name, count, others in _funnel(made))
    assert steps["regenerated"] == (70, "4 failed, 6 excluded; 2 ended early, 120 turns by the target")
    lost = "3 the template refused, 5 had nothing to learn from"
    assert steps["tokenized"] == (62, f"{lost}; 63 sequences, 1 of them cut, 9 more left out as empty")


def test_tags_are_balanced():
    html = page(PAIR)
    for tag in ("section", "table", "tr", "td", "th", "dl", "div", "figure", "details", "ul", "li", "span"):
        assert len(re.findall(rf"<{tag}[\s>]", html)) == html.count(f"</{tag}>"), tag
