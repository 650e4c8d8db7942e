"""HTML that is whole, readable on any page, and says in words what it shows."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from rlhf_mini import tables

TOKENS, TOKEN_KL = [" <b>", "great", "\n", "&"], [0.5, 2.0, 0.0, -1.0]
ROW = {"prompt": "<i>", "before": "a\nb", "after": "c & d"}
ROW |= {"before_gold": -1.234, "after_gold": 2.0}


class Balanced(HTMLParser):
    """Collects the text and raises if a tag is not closed in order."""

    def __init__(self, page):
        super().__init__()
        self.open, self.text = [], ""
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


PAGES = [tables.token_kl_html(TOKENS, TOKEN_KL), tables.samples_table([ROW])]


@pytest.mark.parametrize("page", PAGES, ids=["tokens", "samples"])
def test_html_is_balanced_and_text_is_escaped(page):
    Balanced(page)
    assert "<b>" not in page and "<i>" not in page


@pytest.mark.parametrize("page", PAGES, ids=["tokens", "samples"])
def test_html_takes_its_text_colour_from_the_page_be_it_light_or_dark(page):
    assert not re.search(r"(?<![-\w])color\s*:\s*(?!inherit)", page)


@pytest.mark.parametrize("page", PAGES, ids=["tokens", "samples"])
def test_html_has_a_description_which_is_its_plain_text(page):
    assert f'aria-label="{page.description.split(";")[0]}' in page
    assert repr(page) == page.description
    assert page._repr_html_() == page


def test_tokens_are_all_there_and_breaks_can_be_seen():
    text = Balanced(tables.token_kl_html(TOKENS, TOKEN_KL)).text
    assert text.startswith(" <b>great⏎\n&")


def test_the_colour_tells_the_sign_and_its_strength_the_size():
    page = tables.token_kl_html(TOKENS, torch.tensor(TOKEN_KL))
    grounds = re.findall(r"rgba\((\d+),\d+,\d+,([\d.]+)\)", page)[:4]
    assert grounds == [("213", "0.15"), ("213", "0.60"), ("0", "0.00"), ("0", "0.30")]
    assert 'title="+2.00 nats"' in page and 'title="-1.00 nats"' in page


def test_the_legend_tells_what_a_full_colour_means():
    assert ">+4.0<" in tables.token_kl_html(TOKENS, TOKEN_KL, limit=4.0)
    assert ">-2.0<" in tables.token_kl_html(TOKENS, TOKEN_KL)


def test_a_policy_that_is_the_reference_has_no_colour():
    page = tables.token_kl_html(["a", "b"], [0.0, 0.0])
    assert "sum +0.00 nats" in page.description


def luminance(rgb):
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return np.dot(linear, [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("share", [-1.0, 1.0], ids=["blue", "orange"])
@pytest.mark.parametrize(
    "page, ink", [(1.0, 0.13), (0.07, 0.93)], ids=["light", "dark"]
)
def test_the_strongest_ground_leaves_the_text_readable(share, page, ink):
    """WCAG 2 asks for a contrast of 4.5 to 1."""
    *rgb, alpha = map(float, re.findall(r"[\d.]+", tables._ground(share))[:4])
    ground = [alpha * c / 255 + (1 - alpha) * page for c in rgb]
    dark, light = sorted([luminance(ground), luminance([ink] * 3)])
    assert (light + 0.05) / (dark + 0.05) > 4.5


def test_the_table_has_each_text_with_its_score():
    text = Balanced(tables.samples_table([ROW, ROW])).text
    assert text.count("-1.23") == text.count("+2.00") == text.count("c & d") == 2


@pytest.mark.parametrize("kl, message", [([1, 2], "per token"), ([np.nan], "NaN")])
def test_numbers_that_do_not_fit_are_named(kl, message):
    with pytest.raises(ValueError, match=message):
        tables.token_kl_html(["a"], kl)
