"""How well statements are told from other sentences that the rules were not written for. Do not fit the rules to these.

Written once after the rules, and measured as they were then: precision 0.98, recall 0.73.
"""

from __future__ import annotations

from app.memory.stating import stated

STATEMENTS = """\
hey so i'm anna and im a data analyst based in Leeds
I work in marketing for a travel company.
we're vegetarian at home
I have two daughters, Emma and Lily
My husband works night shifts
I'm celiac so no bread please
Just so you know, I'm 62
I moved to Canada three years ago
I go running every morning
my favourite band is Radiohead
I can't eat shellfish
I use Linux
I'm a big fan of science fiction
I drive a Toyota Corolla
my mother is 80 and lives with us
Please keep your answers short.
Please call me Doc
I have type 2 diabetes and take metformin
I'm studying for the bar exam
Our anniversary is June 5th
my boss is called Helen
I'm pregnant
I was born in Nigeria but live in Dublin now
my cat Luna is 3 years old
I hate flying
I'd prefer metric units
I'm from the north of Italy
I'm a single mom
I'm not a native English speaker
I don't drive
me llamo Lucía y tengo 28 años
soy de Rosario, Argentina
trabajo de camarero los fines de semana
mi novia es vegetariana
tengo una hija de 5 años
no me gustan las películas de terror
prefiero que me hables de tú
soy intolerante a la lactosa
estudio derecho en la UNED
mi madre se llama Carmen
vivo con mi pareja y dos gatos
mi equipo favorito es el Betis
tengo un examen de física el jueves
llevo dos años aprendiendo japonés
no puedo comer gluten
soy profe de mates en un instituto
me encanta cocinar
tengo la tensión alta
soy zurdo
mañana es mi cumpleaños
mi hijo mayor estudia en Londres
odio el pescado
trabajo para una ONG
me mudé a Bilbao el año pasado
recuerda que los lunes no estoy disponible
acuérdate de que mi jefa se llama Rosa
quiero que me respondas siempre en gallego
mi coche es un Seat Ibiza
soy mamá de gemelos
hablo catalán y castellano
"""
OTHERS = """\
How do I reverse a list in Python?
Can you write a short bio for a nurse named Ana?
I'm getting a KeyError when I run this
I want a recipe for lasagna
Explain quantum computing like I'm five.
I am writing an email to my landlord
I have 3 apples and eat 2, how many are left?
My train leaves at 5 and yours at 6, who arrives first?
I like your last answer better
I love how you explained that
I work out the sum as 42, is it correct?
My friend says he is allergic to cats
I prefer the second option
I'm a bit confused about this
I am having trouble with CSS
You are a helpful assistant. My role is user.
I'm interested in learning more about Rome
I need to live in a city for a game, suggest one
I have a list of names: Ana, Bob
I'm planning a trip, what should I pack?
My answer is 42.
I'm curious: why is the sky blue?
Call me when it is done
Always remember to close the file handle in Python?
Never mind.
Always.
I hate this bug
I am going to the shop
I don't like the way it looks
I have to finish this today
I'm done, thanks
I live for coffee lol
My favourite is the first one
I use this function to sort
I'm reading a book about Rome
I speak for everyone here
I study the logs and see nothing
Escribe un poema sobre el mar
¿Puedes resumir este texto?
tengo que hacer un trabajo sobre Roma
tengo hambre
me gusta más la segunda
me duele la cabeza
soy nuevo en esto
estoy buscando piso
no puedo instalar el programa
quiero aprender a cocinar
tengo dos manzanas y como una
mi pregunta es otra
vivo sin vivir en mí
trabajo en ello
no me gusta cómo queda
prefiero la primera versión
estudio el caso y no lo entiendo
es para un amigo que vive en Lima
mi código es este
mi problema es que no compila
hablo en serio
recuerda cerrar el fichero
tengo prisa
me llamo la atención a mí mismo
"""


def test_precision_and_recall_on_sentences_not_seen_before() -> None:
    statements, others = STATEMENTS.splitlines(), OTHERS.splitlines()
    found = sum(bool(stated(text)) for text in statements)
    wrong = [text for text in others if stated(text)]
    precision, recall = found / (found + len(wrong)), found / len(statements)
    print(f"{len(statements)} statements, {len(others)} others: precision {precision:.2f}, recall {recall:.2f}")
    assert precision >= 0.95, wrong
    assert recall >= 0.7
