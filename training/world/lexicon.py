"""Names, objects and themes of the word problems. Data only; it is all made up for this world."""

from __future__ import annotations

from dataclasses import dataclass

SHE = [
    "Mia", "Ana", "Zoe", "Lily", "Emma", "Nora", "Sara", "Ruth", "Ivy", "Clara",
    "Maya", "Lena", "Rosa", "Tara", "Jane", "Alice", "Eva", "Hana", "Kate", "Wendy",
]  # fmt: skip
HE = [
    "Tom", "Ben", "Sam", "Leo", "Max", "Jack", "Omar", "Paul", "Eric", "Adam",
    "Noah", "Luke", "Hugo", "Ivan", "Carl", "Finn", "Theo", "Ravi", "Dan", "Peter",
]  # fmt: skip
NAMES = frozenset(SHE + HE)


@dataclass(frozen=True, slots=True)
class Theme:
    """One setting: who owns what, and the sentences that change the count.

    In every phrase `{who}` is the name, `{it}` the pronoun with a capital, `{n}` the operand and
    `{obj}` the things counted. `times` and `half` phrases have no digits.
    """

    name: str
    objects: tuple[str, ...]
    start: tuple[str, ...]
    groups: tuple[str, ...]
    add: tuple[str, ...]
    sub: tuple[str, ...]
    times: tuple[tuple[int, str], ...]
    half: tuple[str, ...]
    ask: tuple[str, ...]


THEMES: tuple[Theme, ...] = (
    Theme(
        "collector",
        ("shells", "stamps", "cards", "coins", "marbles", "stickers", "buttons", "badges"),
        ("{who} has {n} {obj}", "{who} starts with {n} {obj}", "{who} owns {n} {obj}"),
        ("{who} has {k} boxes of {n} {obj}", "{who} has {k} bags with {n} {obj} each"),
        (
            "{it} finds {n} more",
            "{it} gets {n} from a friend",
            "{it} wins {n} in a game",
            "{it} buys {n} more",
        ),
        (
            "{it} gives away {n}",
            "{it} loses {n}",
            "{it} sells {n} at school",
            "{it} trades away {n}",
        ),
        ((2, "{it} doubles the collection"), (3, "{it} triples the collection")),
        ("{it} gives half of them away", "{it} sells half of them"),
        (
            "How many {obj} does {who} have now?",
            "How many {obj} are left?",
            "How many {obj} does {who} have in the end?",
        ),
    ),
    Theme(
        "baker",
        ("rolls", "buns", "muffins", "cakes", "pies", "cookies", "tarts", "bagels"),
        ("{who} bakes {n} {obj}", "{who} has {n} {obj} on the shelf"),
        ("{who} bakes {k} trays of {n} {obj}", "{who} fills {k} racks with {n} {obj} each"),
        ("{it} bakes {n} more", "{it} takes {n} from the oven", "{it} adds {n} to the shelf"),
        (
            "{it} sells {n} in the morning",
            "{it} sells {n} to a cafe",
            "{it} burns {n}",
            "{it} eats or gives away {n}",
        ),
        ((2, "{it} bakes until there are twice as many"), (3, "{it} bakes until they triple")),
        ("{it} sells half of them", "{it} freezes half of them"),
        ("How many {obj} does {who} have now?", "How many {obj} are left to sell?"),
    ),
    Theme(
        "bus",
        ("people", "passengers", "children", "tourists"),
        ("A bus leaves with {n} {obj}", "{who} drives a bus with {n} {obj}"),
        ("{who} drives {k} coaches with {n} {obj} each", "There are {k} buses with {n} {obj} each"),
        (
            "At the next stop {n} get on",
            "At the school {n} get on",
            "At the market {n} more get on",
        ),
        ("At the bridge {n} get off", "At the station {n} get off", "At the park {n} get off"),
        ((2, "At the stadium the number doubles"), (3, "At the airport the number triples")),
        ("At the harbor half of them get off", "At the museum half of them get off"),
        ("How many {obj} ride on?", "How many {obj} are there in the end?"),
    ),
    Theme(
        "farm",
        ("hens", "sheep", "goats", "ducks", "pigs", "rabbits", "geese", "cows"),
        ("{who} keeps {n} {obj}", "On the farm {who} counts {n} {obj}"),
        ("{who} keeps {k} barns of {n} {obj}", "{who} has {k} pens with {n} {obj} each"),
        ("In spring {n} are born", "{it} buys {n} at the fair", "A neighbor brings {n} more"),
        ("{it} sells {n} at the fair", "In the storm {n} run off", "{it} lends {n} to a neighbor"),
        ((2, "In a good year the herd doubles"), (3, "In a good year the herd triples")),
        ("{it} sells half of the herd", "{it} moves half of them to another farm"),
        ("How many {obj} does {who} keep now?", "How many {obj} are on the farm now?"),
    ),
    Theme(
        "library",
        ("books", "maps", "comics", "magazines", "films", "records"),
        ("{who} shelves {n} {obj}", "{who} looks after {n} {obj}"),
        ("{who} fills {k} shelves with {n} {obj} each", "{who} unpacks {k} crates of {n} {obj}"),
        ("Readers bring back {n}", "A school donates {n}", "{it} orders {n} more"),
        ("Readers borrow {n}", "{it} sends {n} to be mended", "{it} throws out {n} old ones"),
        ((2, "A gift doubles the stock"), (3, "A gift triples the stock")),
        ("Readers borrow half of them", "{it} lends half of them to a school"),
        ("How many {obj} are on the shelves now?", "How many {obj} does {who} have now?"),
    ),
    Theme(
        "garden",
        ("roses", "tulips", "apples", "pears", "plums", "lemons", "onions", "carrots"),
        ("{who} picks {n} {obj}", "{who} has {n} {obj} from the garden"),
        ("{who} picks {k} baskets of {n} {obj}", "{who} plants {k} rows of {n} {obj}"),
        ("{it} picks {n} more", "An aunt brings {n}", "{it} finds {n} behind the shed"),
        ("{it} gives {n} to the neighbors", "Birds spoil {n}", "{it} uses {n} in the kitchen"),
        ((2, "{it} picks until there are twice as many"), (3, "{it} picks until they triple")),
        ("{it} takes half of them to the market", "Frost spoils half of them"),
        ("How many {obj} does {who} have now?", "How many {obj} are left?"),
    ),
    Theme(
        "money",
        ("dollars", "euros", "points", "tokens"),
        ("{who} saves {n} {obj}", "{who} has {n} {obj} in a jar"),
        ("{who} saves {n} {obj} a week for {k} weeks", "{who} fills {k} jars with {n} {obj} each"),
        ("{it} earns {n} more", "An uncle sends {n}", "{it} gets {n} for a chore"),
        ("{it} spends {n} on lunch", "{it} pays {n} for a ticket", "{it} lends {n} to a friend"),
        ((2, "{it} doubles the sum"), (3, "{it} triples the sum")),
        ("{it} spends half of it", "{it} puts half of it in the bank"),
        ("How many {obj} does {who} have now?", "How many {obj} does {who} have left?"),
    ),
    Theme(
        "pond",
        ("fish", "frogs", "boats", "swans", "turtles"),
        ("At the lake {who} sees {n} {obj}", "{who} counts {n} {obj} on the lake"),
        ("{who} counts {k} groups of {n} {obj}", "On {k} lakes {who} counts {n} {obj} each"),
        ("Soon {n} more arrive", "From the river {n} come in", "At noon {n} join them"),
        ("Soon {n} leave", "After the rain {n} disappear", "At dusk {n} leave"),
        ((2, "By night the number doubles"), (3, "By night the number triples")),
        ("In the cold half of them leave", "By morning half of them are gone"),
        ("How many {obj} are there now?", "How many {obj} does {who} count in the end?"),
    ),
)

MORE = ("{other} has {n} more {obj} than {who}", "{other} owns {n} more {obj} than {who}")
FEWER = ("{other} has {n} fewer {obj} than {who}", "{other} owns {n} fewer {obj} than {who}")
TWICE = ("{other} has twice as many {obj} as {who}",)
THEY_ADD = ("They find {n} more", "They buy {n} more", "They get {n} from a friend")
THEY_SUB = ("They give away {n}", "They lose {n}", "They sell {n}")
TOGETHER = ("Together they count all {obj}", "They put their {obj} together")
PAIR_ASK = ("How many {obj} do they have now?", "How many {obj} do they have in all?")
THEN = ("", "", "Then ", "Later ", "After that, ", "Next, ")

SYSTEMS = (
    "You are a helpful assistant.",
    "Solve the problem step by step.",
    "You are a careful assistant. Answer in short sentences.",
    "Answer the user.",
    "You help people with sums and short notes.",
)
