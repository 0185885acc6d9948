"""Short questions with one right answer: arithmetic, facts, and tasks with words. The same rows in every version."""

from collections.abc import Iterator

Exercise = tuple[str, str, str]
"""The kind, the question and its answer."""

_CAPITALS = {
    "France": "Paris", "Japan": "Tokyo", "Egypt": "Cairo", "Kenya": "Nairobi", "Canada": "Ottawa", "Peru": "Lima",
    "Norway": "Oslo", "Greece": "Athens", "Cuba": "Havana", "Portugal": "Lisbon", "Poland": "Warsaw", "Iran": "Tehran",
}  # fmt: skip
_SYMBOLS = {"iron": "Fe", "gold": "Au", "oxygen": "O", "sodium": "Na", "helium": "He", "silver": "Ag"}
_AUTHORS = {
    "Hamlet": "William Shakespeare", "Don Quixote": "Miguel de Cervantes", "War and Peace": "Leo Tolstoy",
    "Pride and Prejudice": "Jane Austen", "Moby-Dick": "Herman Melville", "The Trial": "Franz Kafka",
}  # fmt: skip
_OPPOSITES = {"hot": "cold", "early": "late", "empty": "full", "brave": "cowardly", "cheap": "expensive"}
_PLURALS = {"mouse": "mice", "child": "children", "leaf": "leaves", "city": "cities", "foot": "feet"}
_WORD_LISTS = (
    "pear apple fig", "tiger bear lion wolf", "green blue red", "spoon knife fork cup", "seven one three",
    "rain snow fog",
)  # fmt: skip
_SENTENCES = ("good morning everyone", "the shop is closed", "please mind the step")
_SEQUENCES = ((2, 2), (5, 5), (1, 3), (10, 10), (100, -7), (3, 4))  # first number and difference
_LENGTH = 5  # numbers of a sequence that are shown


def exercises() -> Iterator[Exercise]:
    """Yield all exercises."""
    yield from _arithmetic()
    yield from _facts()
    yield from _words()


def _arithmetic() -> Iterator[Exercise]:
    for step in range(8):
        first, second = 12 + 11 * step, 7 + 5 * step
        for sign, result in (("+", first + second), ("-", first - second)):
            yield "arithmetic", f"What is {first} {sign} {second}?", f"{first} {sign} {second} = {result}"
        factor, times = 3 + step, 4 + 3 * step % 8
        yield "arithmetic", f"What is {factor} times {times}?", f"{factor} times {times} is {factor * times}."
        product = factor * times
        yield "arithmetic", f"What is {product} divided by {times}?", f"{product} divided by {times} is {factor}."
    for first, difference in _SEQUENCES:
        numbers = [str(first + difference * place) for place in range(_LENGTH + 1)]
        shown = ", ".join(numbers[:_LENGTH])
        yield "arithmetic", f"Which number comes next: {shown}?", f"The next number is {numbers[_LENGTH]}."
    for boxes, eggs in ((3, 12), (5, 6), (4, 10)):
        answer = f"There are {boxes} times {eggs} eggs, which makes {boxes * eggs} eggs."
        yield "arithmetic", f"One box holds {eggs} eggs. How many eggs are there in {boxes} boxes?", answer


def _facts() -> Iterator[Exercise]:
    for country, capital in _CAPITALS.items():
        yield "fact", f"What is the capital of {country}?", f"The capital of {country} is {capital}."
    for element, symbol in _SYMBOLS.items():
        answer = f"The chemical symbol for {element} is {symbol}."
        yield "fact", f"What is the chemical symbol for {element}?", answer
    for book, author in _AUTHORS.items():
        yield "fact", f"Who wrote {book}?", f"{book} was written by {author}."


def _words() -> Iterator[Exercise]:
    for word, opposite in _OPPOSITES.items():
        yield "words", f"What is the opposite of {word}?", f"The opposite of {word} is {opposite}."
    for word, plural in _PLURALS.items():
        yield "words", f"What is the plural of {word}?", f"The plural of {word} is {plural}."
    for words in map(str.split, _WORD_LISTS):
        yield "words", f"Sort these words alphabetically: {', '.join(words)}", ", ".join(sorted(words))
    for sentence in _SENTENCES:
        yield "words", f"Write this in capital letters: {sentence}", sentence.upper()
