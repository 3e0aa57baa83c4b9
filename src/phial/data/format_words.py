"""What the templates of format_tasks.py are filled with, each half of it for training or held out, never both."""

from __future__ import annotations

from typing import Literal

Split = Literal["train", "held_out"]

CATEGORIES: dict[Split, dict[str, str]] = {  # plural, and members, none of them in two categories
    "train": {
        "fruits": "apple banana cherry grape lemon mango orange peach pear plum",
        "animals": "cat dog horse cow goat sheep lion tiger bear wolf",
        "colours": "red blue green yellow purple pink brown black white grey",
        "tools": "hammer saw wrench pliers chisel drill shovel rake axe spanner",
        "vegetables": "carrot potato onion cabbage pea leek spinach pumpkin radish celery",
        "drinks": "water tea coffee milk juice cocoa lemonade soda cider smoothie",
        "sports": "football tennis hockey golf rugby cricket boxing rowing fencing judo",
        "metals": "iron copper gold silver tin zinc lead nickel aluminium titanium",
        "trees": "oak pine birch maple willow ash elm spruce cedar beech",
        "jobs": "teacher nurse baker farmer pilot lawyer plumber dentist cook painter",
    },
    "held_out": {
        "birds": "eagle sparrow owl robin crow swan duck goose pigeon hawk",
        "countries": "France Spain Italy Japan Brazil Canada Egypt Kenya India Peru",
        "musical instruments": "piano violin guitar flute drum trumpet harp cello clarinet oboe",
        "planets": "Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune",
        "vehicles": "car bus train bicycle truck tram ship ferry tractor van",
        "flowers": "rose tulip daisy lily violet orchid sunflower poppy iris lavender",
        "insects": "ant bee wasp beetle butterfly moth fly mosquito ladybird dragonfly",
        "clothes": "shirt coat hat scarf glove sock jacket skirt sweater belt",
        "cities": "Paris London Rome Madrid Berlin Tokyo Cairo Lima Oslo Vienna",
        "languages": "English French German Spanish Italian Greek Latin Arabic Hindi Swedish",
    },
}
THINGS: dict[Split, tuple[str, ...]] = {  # to invent, so that any value is right
    "train": ("a person", "a product in a shop", "a book", "a pet", "a town", "a dish", "a car", "a school", "a song"),
    "held_out": ("a film", "a robot", "a hotel", "a sports team", "a game", "a ship", "a company", "a recipe"),
}
KEYS: dict[Split, dict[str, tuple[str | int, ...]]] = {  # and values that would do
    "train": {
        "name": ("Alma", "Rolo", "Fennick", "Tamsin"),
        "age": (7, 12, 30, 41),
        "colour": ("red", "green", "dark blue"),
        "price": (5, 12, 80),
        "city": ("Lima", "Oslo", "Porto"),
        "year": (1987, 2004, 2019),
        "size": ("small", "medium", "large"),
        "owner": ("Ada", "Hugo", "Mira"),
    },
    "held_out": {
        "title": ("Northwind", "The Long Way", "Brightwater"),
        "country": ("Peru", "Norway", "Ghana"),
        "rating": (3, 4, 5),
        "weight": (2, 15, 120),
        "language": ("English", "Spanish", "Swahili"),
        "founded": (1901, 1978, 2011),
        "material": ("wood", "steel", "cotton"),
        "speed": (20, 60, 110),
    },
}
ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen"
).split()
TENS = "- - twenty thirty forty fifty sixty seventy eighty ninety".split()


def in_words(number: int) -> str:
    """A whole number from 0 to 99 in words: forty-seven."""
    if number < 20:
        return ONES[number]
    tens, ones = divmod(number, 10)
    return TENS[tens] + (f"-{ONES[ones]}" if ones else "")
