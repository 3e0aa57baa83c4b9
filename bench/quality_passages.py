"""Short textbook passages written for the default quality classifier, on subjects software manuals do not teach.

Without them the highest tier would speak of computing and mathematics only.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

PASSAGES = (
    """Why is the sky blue? Sunlight contains all colours, and each colour is a wave of its own length. When light
meets a molecule of air, short waves are thrown aside much more strongly than long ones. Blue light is short, so
it reaches our eyes from every part of the sky, while red light goes mostly straight on. At sunset the light
crosses far more air. Most of the blue has been scattered away before it arrives, and what remains looks orange
or red. Try to explain with the same idea why distant mountains look bluish.""",
    """A cell is surrounded by a membrane, a double layer of fat molecules about seven nanometres thick. Small
uncharged molecules such as oxygen pass through it freely. Ions and sugars cannot, and need a protein that forms
a channel or carries them across. If the cell must move a substance from where there is little of it to where
there is much, it has to spend energy. This is called active transport. The sodium pump, for instance, uses one
molecule of ATP to push three sodium ions out and bring two potassium ions in.""",
    """The demand curve shows how much of a good buyers want at each price. It slopes downward because some buyers drop
out as the price rises and the others buy less. Do not confuse a movement along the curve with a shift of the
curve. If the price of tea rises, people buy less tea: that is a movement. If coffee becomes cheaper, people buy
less tea at every price, so the whole curve moves to the left. The equilibrium is the price at which the
quantity demanded equals the quantity supplied; at any higher price some goods remain unsold, and sellers lower
the price.""",
    """In 1848 revolutions broke out in Paris, Vienna, Berlin and many other cities within a few weeks. Historians
point to three causes that came together. First, bad harvests had doubled the price of bread. Second, the
growing middle class demanded a share of political power. Third, Germans, Italians and Hungarians wished for
national states. Within two years nearly all of these movements had been defeated, because the moderates feared
the workers more than they feared the old rulers. Yet serfdom had ended in the Austrian lands, and it never
returned.""",
    """An acid is a substance that gives up a hydrogen ion, and a base is one that accepts it. When hydrochloric acid
is dissolved in water, each molecule passes its proton to a molecule of water. The pH measures how many such
ions there are: it is the negative logarithm of their concentration, so a step of one means ten times more or
less. What is the pH of a solution with 0.001 moles of hydrogen ions per litre? Since 0.001 is ten to the power
of minus three, the pH is 3. If we dilute it ten times, the pH rises to 4.""",
    """Natural selection needs only three conditions. Individuals of a population differ from one another; some of
these differences are inherited; and some make it more likely that their owners leave offspring. Consider
beetles that are green or brown and live on brown bark. Birds see the green ones more easily. In the next
generation there are therefore relatively more brown beetles. No beetle has changed its colour, and none has
tried to: it is the population that has evolved. Notice that the result depends on the surroundings, for on
green leaves the outcome would be the reverse.""",
    """Newton's second law says that the acceleration of a body equals the force on it divided by its mass. Suppose a
cart of 4 kilograms is pulled with a force of 12 newtons while friction holds it back with 2 newtons. The net
force is 12 - 2 = 10 newtons, so the acceleration is 10 / 4 = 2.5 metres per second squared. After three seconds
the cart, having started from rest, moves at 7.5 metres per second. How far has it gone? The mean speed was half
of that, 3.75 metres per second, and in three seconds this makes 11.25 metres.""",
    """Rivers shape the land by erosion, transport and deposition. Near the source the slope is steep, and the water
cuts downward, so that the valley has the form of a V. In the middle course the river begins to swing from side
to side. Water on the outside of a bend flows faster and wears the bank away, while on the inside it slows down
and drops its sand. In this way a small bend becomes a meander. When two bends meet, the river takes the shorter
way, and the old loop remains as an oxbow lake.""",
    """The heart is two pumps side by side. The right half receives blood that is poor in oxygen from the body and
sends it to the lungs; the left half receives the fresh blood and drives it into the aorta. Valves between the
chambers prevent the blood from flowing back, and their closing makes the sounds that a doctor hears. Because
the left ventricle must supply the whole body, its wall is about three times as thick as that of the right. At
rest an adult heart moves roughly five litres in a minute.""",
    """A sonnet has fourteen lines. In the Italian form the first eight lines present a situation or a question, and
the last six answer it; the change between them is called the turn. The English form instead has three groups of
four lines and closes with a couplet. Read the poem aloud and mark the stressed syllables: in most lines you
will find five of them, each after an unstressed one. Where the poet departs from this pattern, ask why. A
stress that comes too early often falls on the word that matters most.""",
    """To find the area of a circle, imagine it cut like a cake into many thin slices. Lay the slices side by side,
pointing up and down in turn. The result looks almost like a rectangle. Its height is the radius, and its width
is half of the circumference, that is, pi times the radius. The thinner the slices, the better the fit.
Therefore the area is the radius times pi times the radius, or pi r squared. Exercise: a pizza of 30 centimetres
costs 9 euros and one of 40 centimetres costs 14. Which gives more for the money?""",
    """Plants make sugar from carbon dioxide and water, and light supplies the energy. This happens in two stages. In
the first, pigments in the chloroplast absorb light; water is split, oxygen is released, and the energy is
stored in two carrier molecules. In the second, called the Calvin cycle, these carriers drive the building of
sugar from carbon dioxide. The second stage needs no light itself, but it stops soon after dark, because the
carriers run out. Farmers raise the amount of carbon dioxide in greenhouses in order to speed it up.""",
    """Inflation means that prices in general rise, so that each unit of money buys less. It is measured with a basket
of goods that a typical household consumes. If the basket cost 200 last year and costs 206 today, inflation is 6
divided by 200, or 3 percent. Who gains and who loses? Someone who owes a fixed sum gains, since the debt is
repaid in money worth less. A pensioner with a fixed income loses. A central bank can slow inflation by raising
interest rates: borrowing becomes dearer, people spend less, and firms find it harder to raise prices.""",
    """The Roman republic was governed by magistrates who were elected for one year and always had a colleague. Each
consul could forbid what the other had decided. The purpose of these rules was to prevent a single man from
becoming king. The senate, in theory, only gave advice; in practice it controlled money and foreign policy,
because its members served for life. As the empire grew, generals commanded armies for many years, and soldiers
expected land from their general rather than from the state. This is one reason why the republic collapsed in
the first century before Christ.""",
    """A sentence has a subject and a predicate. In "The old dog sleeps", the subject is "the old dog" and the
predicate is "sleeps". Some verbs need an object as well: we cannot say "She repaired" without saying what. Such
verbs are called transitive. To test whether a verb is transitive, try to turn the sentence into the passive:
"The bicycle was repaired by her" is correct, but "It was slept by the dog" is not. Now underline the objects in
the following sentences and decide which of the verbs are transitive.""",
    """Earthquakes occur where plates of the earth's crust move past one another. Friction holds the rocks in place
while the strain grows for years, until they suddenly slip. Two kinds of waves then travel through the ground.
The faster ones push and pull in the direction in which they travel; the slower ones shake it from side to side.
The time between the two tells us the distance. If the second wave arrives 40 seconds after the first, and the
lag grows by one second for every eight kilometres, the earthquake was about 320 kilometres away. With three
stations the place can be found.""",
    """Memory is not a recording. Psychologists distinguish between a short-term store, which holds about four items
for some seconds, and a long-term store with no known limit. Whether something passes from one into the other
depends on what we do with it. In one experiment, students who had to explain a text to others remembered more
after a week than students who had read it four times. The reason seems to be that retrieving a memory
strengthens it. For a learner this means: close the book, and try to write down what you have understood.""",
    """Electric current is the flow of charge. It is useful to compare it with water in a pipe: the voltage corresponds
to the pressure, the current to the amount of water per second, and the resistance to the narrowness of the
pipe. Ohm's law states that the voltage is the product of current and resistance. If a lamp of 60 ohms is
connected to 12 volts, a current of 12 / 60 = 0.2 amperes flows. Two such lamps in series have 120 ohms, and the
current falls to 0.1 amperes. In parallel, each of them still gets the full voltage.""",
    """Every right has a limit where it meets the right of another person. A court that must decide between freedom of
speech and the protection of reputation therefore asks several questions. Is the statement one of fact, which
can be true or false, or one of opinion? Was the speaker careful to find out the truth? Does the matter concern
the public? A false statement of fact, made carelessly about a private person, is the least protected. Harsh
criticism of a minister's policy enjoys the strongest protection, because a democracy depends on open debate.""",
    """A major scale is built from whole steps and half steps in a fixed order: whole, whole, half, whole, whole,
whole, half. Starting on C, this gives the white keys of the piano. If we start on G, the seventh note must be
raised by a half step, from F to F sharp; otherwise the order would be broken. The chord on the first note is
called the tonic and sounds like home. The chord on the fifth note, the dominant, contains the seventh note of
the scale, which wants to rise. That is why a piece so often ends by going from the dominant to the tonic.""",
    """Vaccines teach the immune system without causing the disease. They contain a harmless part of a germ or a
weakened form of it. Certain white blood cells recognise this part and multiply. Most of them die when the work
is done, but some remain for years as memory cells. If the real germ arrives later, these cells respond within
hours instead of weeks. When enough people are immune, the germ finds no new hosts, and even those who could not
be vaccinated are protected. For measles, about 95 percent must be immune, because each patient infects many
others.""",
    """Why do we have seasons? A common answer is that the earth is closer to the sun in summer. This is wrong: in
January, when the north has winter, the earth is in fact nearest to the sun. The true cause is that the axis of
the earth is tilted by about 23 degrees. In June the northern half leans toward the sun. Its rays then strike
the ground more steeply, so that the same energy falls on a smaller area, and the days are longer. Six months
later it is the southern half that leans toward the sun.""",
)  # fmt: skip


def windows() -> Iterator[tuple[str, str]]:
    """(group, text): each passage whole, and runs of its sentences; some with their lines as they were typed."""
    for number, passage in enumerate(PASSAGES):
        rng = random.Random(number)
        yield f"passage/{number}", " ".join(passage.split())
        sentences = " ".join(passage.split()).replace("? ", "?\0").replace(". ", ".\0").split("\0")
        for _ in range(7):
            size = rng.randint(2, len(sentences) - 1)
            start = rng.randint(0, len(sentences) - size)
            yield f"passage/{number}", rng.choice((" ", " ", "\n")).join(sentences[start : start + size])
