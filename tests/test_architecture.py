"""What the pages say of the rooms is so."""

import runpy
from pathlib import Path


def test_the_picture_of_the_rooms_is_that_of_the_imports(checkout: Path) -> None:
    """`python docs/tools/rooms.py` draws it anew."""
    draw = runpy.run_path(str(checkout / "docs" / "tools" / "rooms.py"))["draw"]
    assert (checkout / "docs" / "rooms.svg").read_text(encoding="utf-8") == draw()


def test_every_room_is_described(checkout: Path) -> None:
    rooms = {path.parent.name for path in (checkout / "icl_jax").glob("*/__init__.py")}
    for page in ("docs/architecture.md", "README.md"):
        text = (checkout / page).read_text(encoding="utf-8")
        assert [room for room in rooms if f"`{room}/`" not in text and f"`icl_jax/{room}/`" not in text] == [], page
