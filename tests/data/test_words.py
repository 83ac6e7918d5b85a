import pytest

from embedlm.data.words import first_words, runs_of, word_count, words_of


def test_words_are_folded_and_each_sign_of_a_script_without_blanks_is_one():
    assert words_of("Ein Fluß, 北京大学 and x2!") == ["ein", "fluss", *"北京大学", "and", "x2"]
    assert words_of("user_id don't") == ["user", "id", "don", "t"]
    assert words_of("naïve ﬁne ＧＰＵ 1️⃣") == ["naïve", "fine", "gpu", "1"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("पौधे प्रकाश से भोजन", ["पौधे", "प्रकाश", "से", "भोजन"]),
        ("நான் தமிழ்", ["நான்", "தமிழ்"]),
        ("বাংলা ভাষা", ["বাংলা", "ভাষা"]),
    ],
)
def test_a_vowel_sign_does_not_part_a_word(text, words):
    assert words_of(text) == words


@pytest.mark.parametrize(
    ("text", "runs"),
    [
        ("2024年度：iPhone手机", ["2024", ["年", "度"], "iphone", ["手", "机"]]),
        ("佐々木のGPUサーバー", [["佐", "々", "木", "の"], "gpu", ["サ", "ー", "バ", "ー"]]),
        ("ขึ้นดอก", [["ขึ้", "น", "ด", "อ", "ก"]]),
        ("식물은 빛", [["식", "물", "은"], ["빛"]]),
        ("𠮷野家", [["𠮷", "野", "家"]]),
    ],
)
def test_scripts_without_blanks_stand_apart_from_letters(text, runs):
    assert list(runs_of(text)) == runs


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Cafe\u0301s", "Cafés"),
        ("كَتَبَ الوَلَدُ", "كتب الولد"),
        ("שָׁלוֹם", "שלום"),
        ("İstanbul", "ISTANBUL"),
        ("Straße", "STRASSE"),
        ("が", "か\u3099"),
        ("Ω", "\u2126"),
    ],
)
def test_spellings_of_one_word_are_one(one, other):
    assert words_of(one) == words_of(other)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Wind turns a user_id, don't it?", 8),
        ("什么是光合作用", 4),
        ("風力発電は風の力で電気を作る方法である", 10),
        ("풍력은 바람의 힘이다", 4),
        ("กังหันลมเปลี่ยนพลังงาน", 4),
        ("", 0),
    ],
)
def test_signs_without_blanks_are_parts_of_words(text, count):
    assert word_count(text) == count


@pytest.mark.parametrize(
    "text",
    [
        "什么是光合作用" * 9,
        "風力発電は風の力で電気を作る方法である " * 9,
        "กังหันลมเปลี่ยนพลังงาน" * 9,
        "풍력은 바람의 힘이다 " * 9,
    ],
)
def test_the_first_words_of_scripts_without_blanks(text):
    cut = first_words(text, 12)
    assert abs(word_count(cut) - 12) <= 1
    assert "".join(text.split()).startswith("".join(cut.split()))
    assert first_words(text, 10_000) == " ".join(text.split())


def test_the_first_words_between_blanks():
    assert first_words("Don't  stop: l'été\narrive, naïve one", 4) == "Don't stop: l'été arrive,"
    assert first_words("風力発電 is wind power", 4) == "風力発電 is wind"
    assert first_words("a b", 0) == ""
