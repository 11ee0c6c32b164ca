"""Progress bars, in one place so that pages and logs can do without them."""

import os
from collections.abc import Iterable

from tqdm.auto import tqdm


def bar(
    items: Iterable | None, what: str, *, unit: str, total: int | None = None, show: bool = True, **options
) -> tqdm:
    """A tqdm bar over `items`, in the terminal or the notebook.

    Args:
        items: iterated over; None for a bar that is moved by hand with `update`.
        what: the text before it.
        total: number of items, where `items` does not know it.
        unit: of one item, for the rate.
        show: False hides it. It also stays away where the environment variable TRTKIT_HEADLESS is set.
        options: passed on to tqdm.
    """
    hidden = not show or bool(os.environ.get("TRTKIT_HEADLESS"))
    return tqdm(items, what, total, unit=unit, disable=hidden, **options)
