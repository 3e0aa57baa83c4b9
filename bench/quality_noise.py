"""Texts that teach nothing or little, made by rule: the lowest tiers of the default quality classifier.

Spam, menus, product pages, keyword lists, legal boilerplate, filler and broken text (tier 0), forum chatter, reviews
and status posts (tier 1). Every sentence here was written for this file; a seed decides the text.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

FIRST = (
    "Anna Ben Carla Dev Elif Femi Grace Hiro Ines Jonas Kofi Lena Marco Nadia Omar Priya Quinn Rosa Sam Tomas".split()
)
PLACES = "Lisbon Leeds Austin Nairobi Osaka Malmo Quito Perth Graz Bergen Halifax Pune Turin Denver Cork Ghent".split()
ITEMS = (
    "phone case,garden hose,running shoe,office chair,coffee grinder,desk lamp,yoga mat,travel mug,winter jacket,"
    "bluetooth speaker,dog bed,kitchen scale,wall clock,bike light,laptop stand,air fryer,water bottle,pillow,"
    "chemistry set,calculator,microscope,python book,history poster,globe,solar charger,telescope,power drill"
).split(",")
BRANDS = "Velora Kintex Brightly NordHaus Zumo Pelagia Axxo Trillium Ferrano Omnia Quikset Lumo Vanta Castell".split()
ADJECTIVES = (
    "premium amazing best-selling lightweight durable stylish exclusive ultimate affordable brand-new top".split()
)
COLOURS = "black,white,rose gold,navy,forest green,grey,red,sand,teal".split(",")
MENU = (
    "Home,About,About us,Contact,Login,Sign up,My account,Cart (0),Wishlist,FAQ,Help,Search,Blog,News,Archive,Careers,"
    "Press,Terms of use,Privacy policy,Cookie settings,Sitemap,Follow us,Facebook,Twitter,Instagram,YouTube,RSS,Shop,"
    "New in,Sale,Gift cards,Store finder,Shipping,Returns,Newsletter,English,Deutsch,Menu,Close,Next,Previous,Top,"
    "Back to top,Share,Print,Read more,Show all,Load more,Categories,Tags,Science,Sports,Politics,Opinion,Courses,"
    "Tutorials,Documentation,Index,Modules,Download,Docs,Community,Forum,Members,Jobs,Events,Gallery,Maths,History"
).split(",")
SPAM = (
    "Congratulations!!! You have been selected to receive a {n} dollar gift card.",
    "Click here now to claim your prize before midnight.",
    "Lose {n} pounds in {m} days with this one weird trick.",
    "Doctors hate her: see what {name} from {place} discovered.",
    "Make ${n} a day working from home, no experience needed!",
    "LIMITED OFFER: buy {item} now and get {m} free.",
    "Cheap pills online, no prescription, discreet shipping worldwide.",
    "Hot singles in {place} want to chat with you tonight.",
    "Your account has been suspended. Verify your password at the link below.",
    "Dear friend, I am the lawyer of the late Mr {name}, who left a fund of {n} million.",
    "100% FREE!!! Act fast, only {m} places left.",
    "Best casino bonus {n}% on first deposit, play slots now.",
    "Earn crypto while you sleep, our bot never loses.",
    "Learn anything fast with our secret course, only ${n} today!!!",
    "Buy essays and homework written by experts, top grades guaranteed.",
    "Increase your traffic, get {n} backlinks for only ${m}.",
    "Call now 1-800-{n} and ask for {name}.",
    "Unsubscribe here if you no longer wish to receive these messages.",
    "Work smarter with {brand}, the number one {item} for winners.",
    "You will not believe what happened next in {place}.",
)
LEGAL = (
    "We use cookies to personalise content and ads and to analyse our traffic.",
    "By continuing to browse this site you agree to our use of cookies.",
    "Copyright {y} {brand} Ltd. All rights reserved.",
    "All trademarks are the property of their respective owners.",
    "No part of this site may be reproduced without prior written permission.",
    "Please enable JavaScript to view this page.",
    "This page was last updated on {m} March {y}.",
    "Your use of the service is governed by the terms and conditions below.",
    "{brand} accepts no liability for loss arising from the use of this information.",
    "Accept all cookies. Reject all. Manage preferences.",
    "Some content is not available in your region.",
    "Subscribe to our newsletter and never miss an offer.",
    "The page you requested could not be found. Error 404.",
    "Registered office: {n} High Street, {place}. Company number {n}.",
    "You must be logged in to post a comment.",
    "Sponsored links. Advertisement. Advertisement.",
)
PRODUCT = (
    "{brand} {item}, {colour}, {adjective} quality at an {adjective} price.",
    "Only {m} left in stock. Order within {m} hours for delivery tomorrow.",
    "Rated {r} out of 5 by {n} customers.",
    "Was ${n}.99, now ${m}.99. You save {m}%.",
    "SKU: {brand}-{n}. Weight: {m} g. Colour: {colour}. Size: M, L, XL.",
    "Add to cart. Add to wishlist. Compare. Share.",
    "Customers who bought this {item} also bought: {item}, {item}, {item}.",
    "The {adjective} {item} is perfect for home, office and travel.",
    "Free shipping on orders over ${m}. 30 days money back.",
    "Looking for the best {item} in {place}? Look no further!",
    "Our {item} is made of {adjective} materials and looks {adjective}.",
    "Read {n} reviews of the {brand} {item}.",
)
CHAT = (
    "lol same here",
    "does anyone know if {place} is any good for a weekend?",
    "idk man, sounds like a scam to me",
    "this is why i love this forum haha",
    "+1",
    "thanks {name}, worked for me!!",
    "bump",
    "anyone?",
    "i tried that and it still doesnt work :(",
    "omg yes, my {item} broke after like two weeks",
    "can't believe they lost again yesterday, what a joke",
    "first post here, be nice please",
    "you should just google it tbh",
    "who else is watching the match tonight?",
    "my exam went sooo badly today, ugh",
    "imo the old one was way better",
    "Re: Re: Fwd: {item} for sale",
    "pm sent",
    "closed, use the search function",
    "nah you are wrong {name}, read my post again",
    "so tired, need coffee",
    "happy birthday {name}!! have a great day",
    "i think it was {name} who said that but not sure",
    "what do you guys think about the new {brand}?",
    "got mine for {m} bucks in {place}, pretty happy so far",
    "wow thats so cool, where did you get it?",
    "lmao did you see that",
    "sorry for my english",
    "mods can you move this please",
    "edit: nevermind, fixed it",
    "my code gives some weird error, pls help asap",
    "my teacher said physics is hard, i agree lol",
    "yeah history class was boring as hell",
    "just reinstall windows, always works",
    "tl;dr?",
    "we went to {place} last summer, the food was great but the hotel, meh",
    "ok so this happened to me today...",
    "does it come in {colour}?",
    "good luck everyone for the maths test tmrw",
    "im so done with this {item}",
    "hey {name}, how was your weekend? mine was pretty quiet",
    "not bad, just watched some tv with the kids",
)
REVIEW = (
    "I bought this {item} for my {who} and it arrived on time.",
    "It does what it should, but the {colour} looks cheap.",
    "Five stars, would buy again!",
    "Do not waste your money on {brand}.",
    "The film was too long and the ending silly.",
    "Great service at the {place} store, thank you {name}.",
    "Broke after {m} days and nobody answers my mails.",
    "We stayed {m} nights and the room smelled a bit.",
    "Best pizza in {place}, but you wait for ages.",
    "My {who} loves it, so I guess it was a good choice.",
    "The book is ok I suppose, I skipped the middle part.",
    "For the price you cannot complain.",
    "I was not impressed, the old model felt more solid.",
    "Delivery took {m} weeks, box was damaged, {item} was fine.",
    "Nice colour, fits well, a bit tight at first.",
)
FILLER = "lorem ipsum dolor sit amet consectetur adipiscing elit sed do eiusmod tempor incididunt ut labore".split()
KEYWORDS = (
    "cheap,buy,online,best,free,download,review,price,discount,near me,2024,how to,video,top 10,shop,deal,login,"
    "lyrics,hotel,flights,insurance,loan,casino,wallpaper,recipe,pdf,torrent,apk,jobs,salary,homework,essay"
).split(",")


def fill(template: str, rng: random.Random) -> str:
    """The template with every name in braces replaced by a choice."""
    while "{" in template:
        start, end = template.index("{"), template.index("}")
        template = template[:start] + _word(template[start + 1 : end], rng) + template[end + 1 :]
    return template


def _word(kind: str, rng: random.Random) -> str:
    lists = {"name": FIRST, "place": PLACES, "item": ITEMS, "brand": BRANDS, "adjective": ADJECTIVES, "colour": COLOURS}
    if kind in lists:
        return rng.choice(lists[kind])
    if kind == "who":
        return rng.choice(("wife", "son", "mother", "boss", "neighbour", "daughter", "dad"))
    low, high = {"n": (100, 99999), "m": (2, 60), "y": (1999, 2026), "r": (1, 5)}[kind]
    return str(rng.randint(low, high))


def lines_of(templates: Sequence[str], rng: random.Random, joints: Sequence[str], low: int, high: int) -> str:
    """Between low and high filled templates in a row."""
    joint = rng.choice(joints)
    return joint.join(fill(rng.choice(templates), rng) for _ in range(rng.randint(low, high)))


def spam(rng: random.Random) -> str:
    text = lines_of(SPAM, rng, (" ", "\n", "\n\n"), 3, 25)
    return text.upper() if rng.random() < 0.1 else text


def menu(rng: random.Random) -> str:
    joint = rng.choice((" | ", "\n", " > ", " · ", "\n* ", "\n- ", " "))
    return joint.join(rng.choice(MENU) for _ in range(rng.randint(10, 150)))


def legal(rng: random.Random) -> str:
    return lines_of(LEGAL, rng, (" ", "\n", " | "), 3, 20)


def product(rng: random.Random) -> str:
    return lines_of(PRODUCT, rng, (" ", "\n", "\n* "), 4, 25)


def keywords(rng: random.Random) -> str:
    pool = KEYWORDS + ITEMS + PLACES + BRANDS
    joint = rng.choice((", ", " ", "\n", "; "))
    return joint.join(" ".join(rng.choice(pool) for _ in range(rng.randint(1, 4))) for _ in range(rng.randint(20, 150)))


def filler(rng: random.Random) -> str:
    return " ".join(rng.choice(FILLER) for _ in range(rng.randint(50, 300))).capitalize() + "."


def page(rng: random.Random) -> str:
    """A shop's or a portal's page: menu, goods, notices."""
    return "\n\n".join((menu(rng)[:400], product(rng), legal(rng)))


def words_shuffled(text: str, rng: random.Random) -> str:
    words = text.split()
    rng.shuffle(words)
    return " ".join(words)


def words_shuffled_in_lines(text: str, rng: random.Random) -> str:
    """Line breaks stay where they were."""
    return "\n".join(words_shuffled(line, rng) for line in text.split("\n"))


def letters_shuffled(text: str, rng: random.Random) -> str:
    return " ".join("".join(rng.sample(word, len(word))) for word in text.split())


def bytes_misread(text: str, rng: random.Random) -> str:
    words = [w.encode("utf-16-le").decode("latin-1") if rng.random() < 0.5 else w[::-1] for w in text.split()]
    return " ".join(words).replace("\0", "Â")


def chat(rng: random.Random) -> str:
    """A thread: names or none, one post a line."""
    posts = []
    style = rng.randrange(4)
    for _ in range(rng.randint(3, 40)):
        post = " ".join(fill(rng.choice(CHAT), rng) for _ in range(rng.choice((1, 1, 1, 2, 3))))
        name = rng.choice(FIRST)
        heads = (
            "",
            f"{name}: ",
            f"{name.lower()}{rng.randint(1, 99)} wrote:\n> ",
            f"Posted by {name} on {rng.randint(1, 28)} May\n",
        )
        posts.append(heads[style] + post)
    return rng.choice(("\n", "\n\n")).join(posts)


def reviews(rng: random.Random) -> str:
    return lines_of(REVIEW, rng, (" ", "\n", "\n\n"), 3, 25)


NOISE: dict[str, Callable[[random.Random], str]] = {
    "spam": spam,
    "menus": menu,
    "legal boilerplate": legal,
    "product pages": product,
    "keyword lists": keywords,
    "filler": filler,
    "whole shop pages": page,
}
CHATTER: dict[str, Callable[[random.Random], str]] = {"forum threads": chat, "reviews": reviews}
SPOILT: dict[str, Callable[[str, random.Random], str]] = {
    "words shuffled": words_shuffled,
    "words shuffled in lines": words_shuffled_in_lines,
    "letters shuffled": letters_shuffled,
    "bytes misread": bytes_misread,
}
