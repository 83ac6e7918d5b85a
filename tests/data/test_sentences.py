import re
from itertools import pairwise
from time import process_time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from embedlm.data.abbreviations import BEFORE_NUMBERS, CONTINUED, RANKS, TITLES, UNENDING
from embedlm.data.sentences import sentence_gaps

MARKS = r"(?<=[.!?])\s+"
"""Where sentences of plain English end."""


def cut(text, **options):
    """Return the parts of a text, each with the blanks that it begins with."""
    at, found = 0, []
    for start, _ in sentence_gaps(text, **options):
        found.append(text[at:start])
        at = start
    return [*found, text[at:]]


@pytest.mark.parametrize(
    "sentences",
    [
        ["It rains.", " Does it?", " It does!"],
        ["他说：“你好。”", "然后走了。", "真的吗？！", "是的！！"],
        ["（参见图一。）", "后来。"],
        ["「雨が降る。」と彼は言った。", "明日は晴れ。"],
        ["圧力は３．５です．", "次に進む．"],
        ["पौधे भोजन बनाते हैं।", " वे चीनी रखते हैं।"],
        ["هل هذا؟", " نعم."],
        ["เมื่อลมแรง", " ระบบต่าง ๆ จะหยุด", " ในปี 2020 แล้ว", " จบ"],
        ["ຂໍ້ຄວາມ", " ລາວ"],
    ],
)
def test_sentences_end_as_their_script_has_it(sentences):
    assert cut("".join(sentences)) == sentences


@pytest.mark.parametrize(
    "text",
    [
        # Words with a full stop of their own.
        "See Fig. 3 and e.g. Table 2.| The U.S. capital is Washington.",
        "Who is Dr. Miller?| He met Mrs. Jones and Prof. Day at St. Ives.",
        "(Dr. Miller, i.e. Sam, vs. Mr. Poe.)| Done.",
        "Rows cf. Chapter Two.| Go on.",
        "Take nuts, figs etc. and mix them.| Pears, plums etc.| Then stop.",
        "See No. 5 in vol. 2, pp. 7 to 9.| There are approx. 30.| He said No.| We left.",
        "Read Eq. (3) of Sec. 4, Smith et al. 2019.",
        "It opened on Jan. 5 and shut in Dec. 2020.| We wait for Dec.| It snows.",
        "Acme Inc. sells to Ltd. companies.| He runs Acme Inc.| She does not.",
        "She works at Bolt & Co. KG in town.| He left the Co.| Then she did.",
        "They came at 5 p.m. on foot.| It shut at 6 p.m.| We slept.",
        "Gen. Lee and Sen. Day live in Main St.| The street is long.",
        # Initials.
        "J. Smith met Robert E. Lee and J. K. Rowling.| They ate.",
        "The book by J.R.R. Tolkien is long.| C. S. Lewis wrote some too.",
        "You and I.| Did you meet Albert I. Jones?",
        "Add NaCl to 1.0 M.| Stir it for 5 h.| Boil it.",
        "It lacks vitamin C.| The fruit has it.",
        "He serves in the U.S. Army.| He was born in the U.S.| She was not.",
        "The U.N. General Assembly met, and the E.U. did not.| The U.K. Government fell.",
        # Numbers of lists.
        "1. First item.| 2. Second item.| 3.1. Third.",
        "A. Oil the chain.| B. Ride.| IV. Rest.",
        "He was third in 2020.| 5 others came.| It has 3.| We need 4.",
        # Before a small letter.
        'He asked "Why?" and left.| "Stop!" she said.| It ... works.',
        "It binds p53.| siRNA stops it.| daf-16 does too.| iCloud is new.| S. aureus is not.",
        "The band Wham! sold well.| Yahoo! did too.",
        # After what closes a quotation or a bracket.
        'He said "Go."| Then left.| (It rained.)| She stayed.',
        "He said “Go.”| Then left.| [He fell.]| ‘Oh!’| It hurt (a lot!).| Yes.",
        '(He said: "Go.")| Then he left.| Is it (?) So or (!) Not?',
        "Go . . .| Then stop.| Really ?!| Yes.",
        # What has no blank.
        "Pay 3.50 for v1.2.3 of a.txt at https://a.example/b.html?c=1!d.| Bye.",
        # Others than English.
        "Das ist z. B. Die Zeit bzw. Der Spiegel.| Er liest usw.| Dann geht er.",
        "Hr. Meier kam am 3. Oktober zu Nr. 5, d. h. Spät.| Dipl.-Ing. Kurz rief: „Geh.“| Er ging.",
        "Kaiser Augustus lebte im 1. Jahrhundert v. Chr. in Rom.",
        "M. Dupont et Mme. Durand vont chez M. Le Goff.| « Allez. »| Elle dit : « Oui ! »| Fin.",
        "El Sr. López y la Sra. Ruiz leen la pág. 5, p. ej. El Quijote.| ¿Sí?| ¡Claro!",
        "А. С. Пушкин родился в 1799 г. в Москве.| Он писал.",
        # Without capital letters, only words tell.
        "it rains.| does it?| ask dr. miller, e.g. today.| the u.s. capital too.",
    ],
)
def test_a_full_stop_ends_a_sentence_only_where_it_is_not_the_word_s_own(text):
    assert cut(text.replace("|", "")) == text.split("|")


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("We met ", " Miller.", [word.capitalize() for word in TITLES | RANKS]),
        ("It is so, ", " Table.", UNENDING),
        ("See ", " 12.", BEFORE_NUMBERS),
        *(
            ("The ", f" {word.capitalize()}.", [key])
            for key in sorted(CONTINUED)
            for word in sorted(CONTINUED[key])
        ),
    ],
)
def test_every_known_abbreviation_ends_no_sentence(before, after, words):
    for word in words:
        text = f"{before}{word}.{after}"
        assert cut(text) == [text]
        assert cut(f"({text})") == [f"({text})"]


def test_a_number_is_no_sentence_of_its_own_at_a_line_s_start_alone():
    text = "Do so:\n  1. Oil it.\n- 2. Ride it.\n> (3.) Stop it.\nWe had 3. Two fell."
    lines = text.split("\n")
    assert cut(text, lines=True) == [
        lines[0],
        *("\n" + line for line in lines[1:4]),
        "\nWe had 3.",
        " Two fell.",
    ]


def test_a_line_s_end_closes_a_sentence_whatever_stands_before_it():
    assert cut("We met Dr.\nand\nleft.", lines=True) == ["We met Dr.", "\nand", "\nleft."]
    assert cut("We met Dr.\nMiller.") == ["We met Dr.\nMiller."]


known = TITLES | RANKS | UNENDING | BEFORE_NUMBERS | CONTINUED.keys()
plain_word = st.text("abcdefghijklmnopqrstuvwxyzäéß", min_size=2, max_size=12).filter(
    lambda word: word not in known
)
plain = st.lists(
    st.builds(
        lambda words, mark: " ".join(words).capitalize() + mark,
        st.lists(plain_word, min_size=1, max_size=5),
        st.sampled_from(".!?"),
    ),
    max_size=6,
)


@given(plain, st.sampled_from([" ", "  ", "\n", " \n\n "]))
def test_plain_sentences_are_cut_at_every_mark(sentences, blank):
    text = blank.join(sentences)
    assert list(sentence_gaps(text)) == [gap.span() for gap in re.finditer(MARKS, text)]


signs = st.text(st.sampled_from("aBz. .!?\n\"'()»«“”1 3。」とक। ไย") | st.characters())
pieces = st.sampled_from(
    [
        "Dr. ",
        "e.g. ",
        "z. B. ",
        "U.S. ",
        "1. ",
        "J. ",
        ". ",
        '." ',
        ".) ",
        "The ",
        "it ",
        "\n",
        "3 ",
    ]
)


@given(signs | st.lists(pieces | signs).map("".join), st.booleans())
@example(".", True)
@example(". ", False)
@example('." ) . A', True)
@example("A. B", False)
@example("A.\n» B", True)
def test_gaps_are_in_order_and_hold_blanks_alone(text, lines):
    gaps = list(sentence_gaps(text, lines=lines))
    assert all(a[1] <= b[0] and a != b for a, b in pairwise(gaps))
    assert not "".join(text[start:end] for start, end in gaps).strip()
    assert not any("\n" in part.strip() for part in cut(text, lines=True))


@given(st.lists(pieces | signs).map("".join))
def test_no_word_in_small_letters_follows_a_mark_of_a_text_with_capital_letters(text):
    whole = f"A {text}"
    marked = [end for start, end in sentence_gaps(whole) if whole[start - 1] in ".!?"]
    words = [re.split(r"[^\w-]", whole[end:])[0] for end in marked]
    assert not any(word[:1].islower() and word.isalpha() and word.islower() for word in words)


@pytest.mark.parametrize("unit", ["J. ", "1. a ", "e.g. ", ". (", '."', ".  \n", "!' » "])
def test_long_texts_of_one_kind_are_read_in_one_pass(unit):
    begun = process_time()
    for _ in sentence_gaps(unit * (300_000 // len(unit)) + " " * 100_000):
        pass
    assert process_time() - begun < 2
