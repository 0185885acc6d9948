"""Small sealed folders."""

from pathlib import Path

from tunesmith.core.files import new_folder


def fill(folder: Path, word: str) -> None:
    """Write two files, one of them in a subfolder."""
    (folder / "a.txt").write_text(word * 100)
    (folder / "inner").mkdir()
    (folder / "inner" / "b.jsonl").write_text(f'"{word}"\n')


def make(final: Path, word: str) -> None:
    """Write a sealed folder with the files of `fill`, and `word` in its manifest."""
    with new_folder(final, word=word) as folder:
        fill(folder, word)


def names(folder: Path) -> list[str]:
    """Return the sorted names in a folder."""
    return sorted(path.name for path in folder.iterdir())
