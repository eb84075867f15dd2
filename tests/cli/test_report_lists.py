"""The lists of pairs and of neighbors: what people and search engines write, and what one line of an error says."""

from __future__ import annotations

from pathlib import Path

import pytest

from captum_fam.cli.reports.hit_list import ImageIds, read_hit_list
from captum_fam.cli.reports.pair_list import read_pair_list


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(name: str, content: str | bytes) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def sides(content: str | bytes, name: str = "pairs.csv") -> list[tuple[str, str, bool | None]]:
    pairs = read_pair_list(written(name, content)).pairs
    return [(pair.left.as_posix(), pair.right.as_posix(), pair.same) for pair in pairs]


@pytest.mark.parametrize(
    "content",
    [
        "a.jpg,b.jpg\nc.jpg,d.jpg\n",
        "left,right\na.jpg,b.jpg\n\nc.jpg,d.jpg",
        "Right,LEFT,note\r\nb.jpg,a.jpg,old\r\nd.jpg,c.jpg,\r\n",
        '"a.jpg","b.jpg"\n"c.jpg", "d.jpg"\n',
        "a.jpg;b.jpg\nc.jpg;d.jpg\n",
        "a.jpg\tb.jpg\nc.jpg\td.jpg\n",
        b"\xef\xbb\xbfleft,right\na.jpg,b.jpg\nc.jpg,d.jpg\n",
        "left,right\na.jpg,b.jpg\nc.jpg,d.jpg\n".encode("utf-16"),
    ],
)
def test_pairs_as_people_write_them(content: str | bytes) -> None:
    assert sides(content) == [("a.jpg", "b.jpg", None), ("c.jpg", "d.jpg", None)]


def test_paths_are_relative_to_the_list_or_absolute() -> None:
    assert sides("a.jpg,/photos/b.jpg\n", "lists/pairs.csv") == [("lists/a.jpg", "/photos/b.jpg", None)]


def test_a_path_with_commas_quotes_and_other_characters() -> None:
    assert sides('"Smith, ""J"".jpg",é.jpg\n') == [('Smith, "J".jpg', "é.jpg", None)]
    (pair,) = read_pair_list(written("pairs.csv", b"caf\xe9.jpg,b.jpg\n")).pairs
    assert pair.left.name == "caf\udce9.jpg"  # the name of a file in Latin-1, as Python has it


@pytest.mark.parametrize("header", ["", "left,right,same\n", "left,right,label\n"])
def test_words_for_same(header: str) -> None:
    words = ["1", "true", "Yes", "SAME", "0", "False", "no", "different", ""]
    content = header + "".join(f"a.jpg,b{number}.jpg,{word}\n" for number, word in enumerate(words))
    assert [same for _, _, same in sides(content)] == [True] * 4 + [False] * 4 + [None]


def test_a_pair_that_is_repeated_is_one_pair() -> None:
    found = read_pair_list(written("pairs.csv", "a.jpg,b.jpg\nb.jpg,a.jpg\na.jpg,b.jpg\n"))
    assert [pair.line for pair in found.pairs] == [1, 2]
    assert {str(path): reason for path, reason in found.repeated.items()} == {"pairs.csv line 3": "repeated pair"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "pairs.csv is empty, expected rows of left,right"),
        (" \n,\n", "pairs.csv is empty"),
        ("left,right\n", "pairs.csv has a header and no rows"),
        ("left,label\na.jpg,1\n", "pairs.csv line 1: the header left,label has no column right"),
        ("left,right,left\na,b,c\n", "pairs.csv line 1: the header has two columns for left"),
        ("left,right,same,label\na,b,1,1\n", "pairs.csv line 1: the header has two columns for same"),
        ("a.jpg,b.jpg\n\na.jpg\n", r"pairs.csv line 3: right is missing, expected left,right,\[same\]"),
        ("a.jpg,b.jpg\n,b.jpg\n", "pairs.csv line 2: left is missing"),
        ("a.jpg,b.jpg,maybe\n", "pairs.csv line 1: same must be 1 or 0, .*, got maybe; a header names the columns"),
        ("a.jpg,b.jpg,1\na.jpg,c.jpg,2\n", "pairs.csv line 2: same must be 1 or 0, .*, got 2$"),
        ("a.jpg,b.jpg,1,x\n", "pairs.csv line 1: 4 cells for the 3 of .*; a path with a comma needs quotes"),
        ("left,right\na,b,c\n", "pairs.csv line 2: 3 cells for the 2 of the header"),
        ("a.jpg,b.jpg,1\na.jpg,b.jpg,0\n", "pairs.csv line 2: same is another than in line 1"),
        ("a.jpg,a.jpg\n", "pairs.csv line 1: left and right are the same file, a.jpg"),
        ('a.jpg,b.jpg\n"c.jpg,d.jpg\n', "pairs.csv line 2: no CSV .* is a quote not closed"),
        (b"a.jpg\x00,b.jpg\n", "pairs.csv is no text file: it holds zero bytes"),
        (b"\xff\xfea\x00,\xd8", "pairs.csv begins as UTF-16, and is none"),
    ],
)
def test_what_is_wrong_with_a_list_of_pairs(content: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        sides(content)
    assert "\n" not in str(error.value)


def test_neighbors_in_json_lines() -> None:
    path = written(
        "hits.jsonl",
        b'\xef\xbb\xbf{"query": "q1.jpg", "ids": ["wren/1.jpg", 7, null, -1], "scores": [0.9, 1, null, 0], "k": 2}\n'
        b'\r\n{"query": "q2.jpg", "ids": ["jay\\u2028.jpg"], "scores": [-3.5]}\n',
    )
    first, second = read_hit_list(path)
    assert (first.query, first.ids, first.scores) == ("q1.jpg", ("wren/1.jpg", 7), (0.9, 1.0))
    assert (second.ids, second.scores, second.line.number) == (("jay\u2028.jpg",), (-3.5,), 3)


@pytest.mark.parametrize(
    "content",
    [
        "q1,a,0.9\nq2,c,0.8\nq1,b,0.7\nq2,-1,\n",
        "score,query,id\n0.9,q1,a\n.8,q2,c\n0.7,q1,b\n",
        "query\tid\tsimilarity\nq1\ta\t0.9\nq1\tb\t7e-1\nq2\tc\t0.8\n",
    ],
)
def test_neighbors_in_csv_keep_the_order_of_their_rank(content: str) -> None:
    hits = {one.query: (one.ids, one.scores) for one in read_hit_list(written("hits.csv", content))}
    assert hits == {"q1": (("a", "b"), (0.9, 0.7)), "q2": (("c",), (0.8,))}


@pytest.mark.parametrize("name", ["hits.txt", "hits", "hits.csv"])
def test_json_lines_are_known_by_their_content(name: str) -> None:
    (one,) = read_hit_list(written(name, '\n  {"query": "q.jpg", "ids": ["a,b.jpg", 7]}\n'))
    assert (one.query, one.ids, one.scores) == ("q.jpg", ("a,b.jpg", 7), ())


def test_neighbors_without_scores() -> None:
    for name, content in (("h.csv", "q,a\nq,b\n"), ("h.ndjson", '{"query": "q", "ids": ["a", "b"]}')):
        (one,) = read_hit_list(written(name, content))
        assert (one.ids, one.scores) == (("a", "b"), ())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\n\n", "hits.jsonl is empty, expected one JSON object with query, ids per line"),
        ('{"query": "q", "ids": [1]}\n{"query": "r", "ids": [1,}', r"hits.jsonl line 2: no JSON \("),
        ('[{"query": "q", "ids": [1]}]', "line 1: expected a JSON object with query, ids, got list"),
        ('{"query": "q"}', "line 1: ids is missing"),
        ('{"query": 4, "ids": [1]}', "line 1: query must be the path of an image, got 4"),
        ('{"query": "q", "ids": "a"}', "line 1: ids must be a list of paths or numbers, got a"),
        ('{"query": "q", "ids": []}', "line 1: the query q has no neighbor"),
        ('{"query": "q", "ids": [-1, null]}', "line 1: the query q has no neighbor"),
        ('{"query": "q", "ids": [1.5]}', "line 1: ids must be paths or whole numbers, got 1.5"),
        ('{"query": "q", "ids": [true]}', "line 1: ids must be paths or whole numbers, got True"),
        ('{"query": "q", "ids": [1, 1]}', "line 1: the neighbor 1 of q stands there twice"),
        ('{"query": "q", "ids": [1], "scores": [1, 2]}', "line 1: scores must be a list of 1 numbers"),
        ('{"query": "q", "ids": [1], "scores": [NaN]}', "line 1: the score of 1 must be a finite number, got nan"),
        ('{"query": "q", "ids": [1], "scores": ["1"]}', 'the score of 1 must be a finite number, got the text "1"'),
        ('{"query": "q", "ids": [1]}\n{"query": "q", "ids": [2]}', "line 2: the query q stands in line 1 already"),
        (
            '{"query": "q", "ids": [1], "scores": [1]}\n{"query": "r", "ids": [2]}',
            "line 2: there are no scores, but line 1 has some",
        ),
        (
            '{"query": "q", "ids": [1]}\n\n{"query": "r", "ids": [2], "scores": [1]}',
            "line 1: there are no scores, but line 3 has some",
        ),
        ("[" * 100_000, "line 1: no JSON"),
    ],
)
def test_what_is_wrong_with_json_lines_of_neighbors(content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_hit_list(written("hits.jsonl", content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("query,score\nq,1\n", "hits.csv line 1: the header query,score has no column id"),
        ("q,a,1\nq,b,two\n", "hits.csv line 2: score must be a number, got two"),
        ("q,a,1\nq,b,inf\n", "hits.csv line 2: the score of b must be a finite number, got inf"),
        ("q,a,1\nq,b\n", "hits.csv line 2: a score stands either in all rows of q or in none"),
        ("q,a,1\nr,b\n", "hits.csv line 2: there are no scores, but line 1 has some"),
        ("q,a\nr,b\nq,a\n", "hits.csv line 3: the neighbor a of q stands there twice"),
        ("q,-1\nq,-1\n", "hits.csv line 1: the query q has no neighbor"),
        ("q\n", r"hits.csv line 1: id is missing, expected query,id,\[score\]"),
    ],
)
def test_what_is_wrong_with_a_csv_of_neighbors(content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_hit_list(written("hits.csv", content))


def test_ids_are_paths_names_or_positions(folder: Path) -> None:
    names = ["crow/1.png", "crow/12.png", "wren/1.png", "wren/3.old.png", "wren/2.png"]
    files = [written(f"birds/{name}", "") for name in names]
    beside = written("birds/deep/down/4.png", "")
    ids = ImageIds(files, [Path("birds")])
    assert ids.path("crow/1.png") == files[0]
    assert ids.path("birds/wren/../wren/1.png") == files[2]  # from the working folder
    assert ids.path(str(folder / "birds/wren/2.png")) == files[4]
    assert ids.path("3.old.png") == ids.path("3.old") == files[3]
    assert ids.path("12") == files[1]  # a name comes before a position
    assert ids.path(2) == files[2]
    assert ids.path("4") == files[4]
    assert ids.path("deep/down/4.png") == beside  # a file that is none of the gallery's list


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (5, r"5 is no image: the gallery has the positions 0\.\.2"),
        ("17", r"17 is no image: the gallery has the positions 0\.\.2"),
        (-2, "-2 is no image: the gallery has"),
        ("1.png", "1.png is the name of 2 images; give a path with its folder"),
        ("crow/11.png", r"crow/11.png is no image in birds; did you mean 1.png\?"),
        ("qqqqqqqq", "qqqqqqqq is no image in birds$"),
        ("a\0b", r"a\\x00b is no image in birds"),
    ],
)
def test_an_id_that_stands_for_no_image(one: str | int, message: str) -> None:
    ids = ImageIds(
        [written(f"birds/{name}", "") for name in ("crow/1.png", "wren/1.png", "wren/z.png")], [Path("birds")]
    )
    with pytest.raises(ValueError, match=message):
        ids.path(one)
