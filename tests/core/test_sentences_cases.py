"""What is one sentence: a table of texts cut by hand, ``¦`` where one ends.

Each case is fed whole, character by character and in pieces of three, so that none of them hides
a dependence on chunking.
"""

from __future__ import annotations

import pytest

from stream_aligner_proxy.core.sentences import SentenceSplitter

CUT = "¦"

ABBREVIATIONS = [
    "Dr. Smith met Mr. Jones.¦ They talked.",
    "Use fruit, e.g. Apples, i.e. Malus, etc.¦ The rest is fine.",
    "I live in the U.S.¦ It is big.",
    "The U.S. Government said so.¦ We agreed.",
    "It was Smith vs. Jones.¦ Jones won.",
    "See No. 5 and Fig. 3.¦ Then read p. 55 and pp. 7 and Vol. 2.",
    "No.¦ I will not.",
    "No.¦ A cat is not a dog.",
    "We meet at 5 p.m. on Monday.¦ He left at 6 p.m.¦ The shop was closed.",
    "Smith et al. (2019) agree.¦ Smith et al.¦ They agree.",
    "She works at Acme Inc. and likes it.¦ He works at Acme Inc.¦ They sell things.",
    "She has a Ph.D. in physics.¦ He has none.",
    "St. Michael lived near Mt. Fuji.¦ He moved.",
    "It was on Jan. 5, 2020.¦ Then came Feb. 6.",
    "Mars is near the Sun.¦ Surface ice melts.",
    "That was years ago.¦ Agriculture spread.",
    "It took 5 ms.¦ Reading took more.",
    "Bitte max. 5 Personen.¦ Es gilt Art. 3 und art. 4.¦ Danke.",
    "After World War II.¦ Visitors came.",
    "I ate a fig.¦ It was good.",
    "P.S. I love you.",
    "Das kostet z. B. Geld.¦ Es kostet z.B. Zeit bzw. Mühe usw.¦ Gut.",
    "Am 3. Oktober war er im 19. Jahrhundert.¦ Er blieb bis 1990.¦ Danach ging er.",
    "Er war der 2. Sieger.¦ Sie wurde 3.¦ Das war gut.",
    "Er kam am 3.¦ Danach ging er.¦ Am 3. 10. 1990 war es.¦ Gut.",
    "See pp. 5 ff. (2019) and more.¦ Yes.",
    "C'est M. Le Pen.¦ Oui.",
    "Je vois M. Le Pen.¦ Oui.",
    "Er hat 250.¦ August kam.¦ Er blieb bis 1990.¦ Hamburg war schön.",
    "She got “Inc.”¦ Smith did not.",
    "It is by Acme Inc.¦ 你好。",
    "The answer is no.¦ Dogs bark.",
    "Er lebte 50 v. Chr. in Rom.¦ Sie auch.",
    "M. Dupont arrive.¦ Mme. Curie aussi, etc.¦ C'est tout.",
    "Le Sr. López vive en EE. UU. desde 1990.¦ La Sra. Gómez no.",
    "Es el núm. 5 de la pág. 7.¦ Sí.",
    "Это г. Москва, т. е. столица.¦ Да.",
    "डॉ. शर्मा आए।¦ वे चले गए।",
]
NUMBERS = [
    "Pi is 3.14 and e is 2.71.¦ Both are irrational.",
    "It costs $3.50.¦ That is cheap.",
    "The total is 5.¦ So we are done.",
    "We got 12.¦ 3 of them broke.",
    "Use version 1.2.3.¦ Python 3.11 works.¦ Python 3.9.¦ Python is old.",
    "Step 1. Add the eggs.¦ Step 2. Stir.",
    "They are: 1. Ann",
    "Step 1: add 2 and 3.¦ Step 2: stir.",
    "In 1999.¦ The end.",
    "It was 20 °C.¦ Water froze.",
    "1. We add 2.¦ Then stop.",
]
NAMES = [
    "J. R. R. Tolkien wrote it.¦ C. S. Lewis did not.",
    "My name is Jonas E. Smith.¦ Hello.",
    "It was written by J. Smith.¦ He lied.",
    "That is vitamin C.¦ It helps.",
    "We chose plan B.¦ The plan failed.",
    "We chose plan B.¦ 5 people came.",
    "It is you and I.¦ Xavier left.",
    "“J. Smith left.”¦ Yes.",
    "It was 20 C.¦ Water froze.",
    "Solve for x.¦ Then stop.",
    "Solve for x.¦ Stop.",
    "It is you and I.¦ Did you know?",
    "World War I.¦ The war ended.",
]
STOPS = [
    "Wait... what?¦ Yes.",
    "I never meant that....¦ She left.",
    "Well… I think so.¦ Well…¦ She left.",
    "It was . . . strange.¦ Very.",
    "What?!¦ No way!!!¦ Really?",
    "She works at Yahoo! in accounting.¦ Nice.",
    "Hello!¦ Long time no see.",
    "the first one.¦ the second one.¦ why?¦ because.",
    "so... yes.¦ use fruit, e.g. apples.¦ fine.",
    "It is of high quality.¦You will like it.",
    "Open file.The-end and v2.The list and a.B now.",
    "Well...¦ It works.",
    "Great job! 🎉¦ Next.",
    "Great job!🎉¦ Next.",
    "Great job. 👍🏽¦ Next.",
    "Thanks! :)¦ See you.",
    "Nice :-) and good.¦ Yes.",
    "He left.¦ — Why?¦ — No idea.",
    "Nice one 👍🏽.¦ Family 👩‍👩‍👧.¦ Yes.",
]
QUOTES = [
    'He said "Go."¦ Then he left.',
    'He said "Go!" and left.¦ She stayed.',
    "“Yes.”¦ “No.”¦ She laughed.",
    "(It was late.)¦ He left (at 5 p.m.) alone.¦ Good.",
    "He teaches (He worked for 5 years.) at home.¦ Fine.",
    "It works.[1]¦ It does.[2][3]¦ So it does.[4, 5]¦ Yes.",
    "It works.[^1]¦ Yes.",
    "<b>It works.</b>¦ Yes.¦<br>No.¦ 1.<2 holds.",
    "Er sagte: „Gut.“¦ Dann ging er.",
    "Er kam.¦ »Gut.«¦ Dann ging er.",
    "Sie rief: »Komm!«¦ Er kam.",
    "Il dit : « Quoi ! » et part.¦ Elle reste.",
    "« Oui. »¦ Elle rit.",
    "**Done.**¦ Next.¦ *Why?*¦ Because.",
    "**Note:** It works.¦ **Tip:** Try it.",
    "He cut “[...] the rest.”¦ Fine.",
]
NOT_PROSE = [
    "See https://a.example/b.html?q=1.¦ Then go.",
    "Write to jane.doe@mail.example.¦ She reads it.",
    "Edit main.py and .gitignore.¦ Then run ./x.sh.",
    "Use Node.js or the .NET runtime.¦ Both work.",
    "Call `a.b. C` first.¦ Then stop.",
    "Call ``a ` b. C`` first.¦ Then stop.",
    "Is `x? Y` code?¦ Yes.",
    "Is `x``y. Z` code?¦ Yes.",
    "A stray ` mark.¦\nNext.¦ End.",
    "He said ``Stop.¦ Go.'' and left.",
    "So $$a = 1. B = 2$$ holds.¦ Yes.",
    "So $$a = 1. B = 2$$ holds.¦\n\nYes.",
    "So \\(a = 1. B = 2\\) holds.¦ Yes.",
    "It costs $5.¦ Or $6.¦ Yes.",
    "It costs $$$.¦ Yes.",
    "So:¦\n$$\na = 1.\nb = 2.\n$$¦\nDone.",
    "So:¦\n\\[\na = 1.\nb = 2.\n\\]¦\nDone.",
    "Costs $$ a lot.¦\n\nYes.",
]
LINES = [
    "# Title. With stop¦\n\nText.¦ More.",
    "Title¦\n=====¦\nText.",
    "- one¦\n- two.¦ Three.¦\n- four",
    "* **Bold.**¦ Text",
    "1. First item¦\n2. Second item.¦ More.¦\n10. Tenth",
    "a) First¦\nb) Second",
    "1) Wash¦ 2) Dry",
    "1) Wash 2) dry",
    "a) Wash¦ b) Dry",
    "1) Wash 2)",
    "9. Wash¦ 10. Dry",
    "I. Meet J. Smith.¦ Yes.",
    "• Wash¦ • Dry",
    "| a. B | c. D |¦\n|---|---|¦\n| 1. X | 2. Y |¦\nText.",
    "> Quoted.¦ Text",
    "Roses are red¦\nViolets are blue",
    "One line.¦\nNext line",
    "Stop.¦ \nnext line",
    "This line is wide enough to be a part of a text that was wrapped at¦\n\nyes.",
    "One line.¦  \nNext line",
    "Text¦\r\n\r\nMore¦\r\nEnd.",
    "Text¦\u2028More",
    "This line is wide enough to be a part of a text that was wrapped at\nseventy columns.¦ Yes.",
    "This line is wide enough to be a part of a text that was wrapped at¦\nSeventy columns.¦ Yes.",
    "This line is wide enough to be a part of a text that was wrapped:¦\nyes.",
    "Dear Ann,¦\n\nThanks.¦\n\nBest,¦\nBob",
    "End.¦\u00a0Next.",
]
OTHER_SCRIPTS = [
    "你好。¦我是谁？¦真的！¦好",
    "他说：“你好。”¦我走了。",
    "他说。¦“你好。”¦好。",
    "**注意。**¦然后。¦**重点**在此。",
    "我……不知道。¦好。",
    "「はい。」と言った。¦そうです。",
    "（注。）¦次。",
    "これは3.14です。¦はい！？¦いいえ｡¦次",
    "我用 Python 3.11。¦很好!¦真的?¦是",
    "这是GPT.¦它好。",
    "هل هذا صحيح؟¦ نعم.¦ شكرا.",
    "د. محمد هنا.¦ نعم.",
    "جاء د. محمد.¦ نعم.",
    "یہ ہے۔¦ ہاں۔",
    "वह आया।¦ वह गया॥¦ ठीक",
    "สวัสดีครับ ผมชื่อ ดร.¦ สมชาย ครับ",
    "안녕하세요.¦ 저는 학생입니다.¦ 네!",
    "Բարեւ։¦ Այո։",
    "Café\u0301.¦ Voilà!\u0301¦ Oui.",
]


@pytest.mark.parametrize(
    "marked",
    ABBREVIATIONS + NUMBERS + NAMES + STOPS + QUOTES + NOT_PROSE + LINES + OTHER_SCRIPTS,
)
@pytest.mark.parametrize("size", [1, 3, 10_000])
def test_a_text_is_cut_where_a_reader_would_cut_it(marked: str, size: int) -> None:
    text = marked.replace(CUT, "")
    splitter = SentenceSplitter()
    got = [s for i in range(0, len(text), size) for s in splitter.feed(text[i : i + size])]
    got += splitter.flush()
    assert [s.text for s in got] == marked.split(CUT)
    assert {s.kind for s in got} == {"prose"}
