import base64
import hashlib
import json
import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.routing.category import Category, classify
from extproc.routing.features import measure
from extproc.routing.request import Prompt

ENGLISH = (
    "The harbour was quiet when we arrived, and the boats lay still against the "
    "wooden quay. An old man mending nets thought that the storm would not come "
    'before evening; "you have time," he said, "but not much of it." '
)
PYTHON = '''
def merge(left, right):
    """Merge two sorted lists."""
    merged = []
    while left and right:
        source = left if left[0] <= right[0] else right
        merged.append(source.pop(0))
    return merged + left + right
'''
GO = """
func (s *Server) Serve(l net.Listener) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		go s.handle(conn, &s.opts)
	}
}
"""
C = """
static int compare(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;

    if (x->weight != y->weight)
        return x->weight < y->weight ? -1 : 1;
    return strcmp(x->name, y->name);
}
"""
SCRIPT = """
const total = items
  .filter((item) => item.price > 0 && !item.hidden)
  .map((item) => item.price * (1 + item.tax))
  .reduce((sum, price) => sum + price, 0);
"""
CHINESE = "清晨的港口非常安静，木船靠在岸边。老人一边补网一边告诉我们，暴风雨在傍晚之前不会来。"
JAPANESE = "朝の港はとても静かで、木の船が岸壁に並んでいた。老人は網を繕いながら、嵐は夕方まで来ないと言った。"
KOREAN = "아침의 항구는 아주 조용했고 나무배들이 부두에 나란히 있었다. 노인은 저녁까지 폭풍이 오지 않는다고 말했다."
RUSSIAN = "Утром в гавани было тихо, и лодки стояли у деревянного причала. Старик сказал, что буря придёт только к вечеру."
ARABIC = "كان الميناء هادئا في الصباح، وكانت القوارب راسية بجانب الرصيف الخشبي. قال العجوز إن العاصفة لن تأتي قبل المساء."
HINDI = "सुबह बंदरगाह शांत था और नावें लकड़ी के घाट के पास खड़ी थीं। बूढ़े ने कहा कि तूफान शाम से पहले नहीं आएगा।"
GREEK = "Το πρωί το λιμάνι ήταν ήσυχο και οι βάρκες έμεναν ακίνητες. Ο γέρος είπε ότι η καταιγίδα θα έρθει το βράδυ."
THAI = "ท่าเรือในตอนเช้าเงียบสงบ เรือไม้จอดเรียงกันอยู่ริมฝั่ง ชายชราบอกว่าพายุจะไม่มาก่อนค่ำ"
VIETNAMESE = "Buổi sáng bến cảng rất yên tĩnh, những chiếc thuyền gỗ nằm im bên cầu tàu. Ông già nói rằng bão sẽ đến vào buổi tối."

DIGEST = hashlib.sha512(b"seed").hexdigest()
RECORDS = [
    {"id": i, "name": "Ada", "tags": ["a", "b"], "active": True} for i in range(20)
]
CSV = "\n".join(
    f"2026-03-{day:02},{day * 7919 % 1000},{day * 104729 % 977}.{day},{day % 2}"
    for day in range(1, 29)
)

TEXTS = {
    "english": (ENGLISH, Category.PROSE),
    "a-question": ("What is the capital of France?", Category.PROSE),
    "markdown": ("# Notes\n\n" + ENGLISH + "\n\n- one\n- two\n", Category.PROSE),
    "python": (PYTHON * 3, Category.CODE),
    "go": (GO * 3, Category.CODE),
    "c": (C * 3, Category.CODE),
    "javascript": (SCRIPT * 3, Category.CODE),
    "chinese": (CHINESE, Category.CJK),
    "japanese": (JAPANESE, Category.CJK),
    "korean": (KOREAN, Category.CJK),
    "json": (json.dumps(RECORDS), Category.STRUCTURED),
    "compact-json": (json.dumps(RECORDS, separators=(",", ":")), Category.STRUCTURED),
    "csv": (CSV, Category.DIGITS),
    "hex": (DIGEST * 4, Category.DIGITS),
    "base64": (base64.b64encode(DIGEST.encode() * 3).decode(), Category.DIGITS),
    "uuids": (
        "\n".join(str(uuid.uuid5(uuid.NAMESPACE_DNS, str(i))) for i in range(20)),
        Category.DIGITS,
    ),
    "digits": ("".join(str(i * 7919) for i in range(100)), Category.DIGITS),
    "russian": (RUSSIAN, Category.OTHER_SCRIPT),
    "arabic": (ARABIC, Category.OTHER_SCRIPT),
    "hindi": (HINDI, Category.OTHER_SCRIPT),
    "greek": (GREEK, Category.OTHER_SCRIPT),
    "thai": (THAI, Category.OTHER_SCRIPT),
    # Latin letters are mixed with letters of three bytes, so the tokens are mixed, too.
    "vietnamese": (VIETNAMESE, Category.MIXED),
    "english-and-chinese": (ENGLISH + CHINESE, Category.MIXED),
    "code-with-russian-comments": (PYTHON + RUSSIAN[:60], Category.MIXED),
    "nothing": ("", Category.PROSE),
}


def category_of(text: str, tools_text: bytes = b"", **kwargs: object) -> str:
    prompt = Prompt(text.encode(), tools_text=tools_text)
    return classify(measure(prompt, len(text)), **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize(("text", "category"), TEXTS.values(), ids=TEXTS)
def test_categories_come_from_the_text(text: str, category: Category) -> None:
    assert category_of(text) == category


@pytest.mark.parametrize("name", [n for n in TEXTS if n != "nothing"])
def test_a_longer_text_of_a_kind_is_of_that_kind(name: str) -> None:
    text, category = TEXTS[name]

    assert category_of((text + "\n") * 200) == category


def test_mostly_tool_definitions_is_structured() -> None:
    tools = json.dumps(RECORDS).encode()

    assert category_of("Hi", tools) == Category.STRUCTURED
    assert category_of("", tools) == Category.STRUCTURED
    assert category_of(ENGLISH * 20, tools) == Category.PROSE


def test_a_known_hint_wins_over_the_text() -> None:
    assert category_of(ENGLISH, hint="code") == "code"
    assert category_of(ENGLISH, hint="legal", hints={"legal"}) == "legal"


@pytest.mark.parametrize("hint", ["legal", "", "CODE", "code ", "x" * 5000, "\xff"])
def test_an_unknown_hint_is_ignored(hint: str) -> None:
    assert category_of(ENGLISH, hint=hint) == Category.PROSE


@settings(max_examples=100)
@given(text=st.binary(max_size=300))
def test_every_text_has_one_of_the_categories(text: bytes) -> None:
    assert classify(measure(Prompt(text), len(text))) in set(Category)
