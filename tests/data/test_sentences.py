import re

import pytest

from embedlm.data.sentences import SENTENCE_GAP


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
    text, at, found = "".join(sentences), 0, []
    for gap in re.finditer(SENTENCE_GAP, text):
        found.append(text[at : gap.start()])
        at = gap.start()
    assert [*found, text[at:]] == sentences
