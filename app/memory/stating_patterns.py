"""How people state things of themselves, in English and in Spanish: expressions for `app.memory.stating`, and nothing else.

All are matched at the beginning of a clause without accents, so that they say what a clause is and not what it mentions. Words
come in any case; where a capital letter tells a name from a word (`_NAME`, `_PLACE`), case counts.
"""

from __future__ import annotations

import re
from typing import Final

_END = r"(?=$|[,;(]| and\b| y\b| but\b| pero\b)"
_NAME = r"[A-Z][\w'’-]{0,30}(?: (?:de |del |la |van |von |O')?[A-Z][\w'’-]{0,30}){0,3}"
_LOW_NAME = (
    r"(?!(?i:not|on|in|at|the|an?|missing|wrong|spelled|misspelled|too|very|being|no|el|la|un|una|en|muy|de|demasiado|"
    r"written)\b)"
    r"[\w'’-]{2,30}(?: [\w'’-]{2,30}){0,2}" + _END
)
_PLACE = (
    r"(?:(?:the |la |el |los |las |una? |an? |north of |south of |downtown |central |old |upstate |[a-z]{3,12} ){0,3}"
    r"(?:[A-Z]|(?i:town|city|village|suburb|farm|flat|apartment|house|countryside|pueblo|ciudad|aldea|piso|casa|campo|"
    r"barrio)\b))"
)

_ROLES_EN = (
    r"(?:nurse|teacher|doctor|physician|surgeon|engineer|developer|programmer|student|undergraduate|lawyer|attorney|designer|"
    r"writer|author|journalist|scientist|researcher|architect|manager|chef|cook|baker|driver|electrician|plumber|carpenter|"
    r"mechanic|musician|singer|pianist|guitarist|artist|painter|actor|actress|accountant|analyst|economist|farmer|pilot|"
    r"photographer|translator|interpreter|therapist|psychologist|dentist|vet|veterinarian|pharmacist|librarian|consultant|"
    r"freelancer|entrepreneur|founder|professor|lecturer|beginner|widow|widower|mother|father|mom|mum|dad|parent|grandmother|"
    r"grandfather|vegetarian|vegan|pescatarian|diabetic|celiac|coeliac|muslim|christian|jew|buddhist|hindu|firefighter|"
    r"paramedic|"
    r"soldier|waiter|waitress|barista|biologist|chemist|physicist|mathematician|administrator|sysadmin|runner|cyclist|swimmer|"
    r"(?:native|fluent) [a-z]{4,10} speaker|night owl|morning person)"
)
_STATES_EN = (
    r"(?:vegan|vegetarian|pescatarian|celiac|coeliac|diabetic|asthmatic|pregnant|retired|married|single|divorced|widowed|"
    r"engaged|"
    r"left-handed|colou?r-?blind|deaf|blind|dyslexic|lactose[ -]intolerant|gluten[ -]intolerant|unemployed|bilingual|autistic|"
    r"muslim|jewish|christian|spanish|german|french|italian|english|british|american|mexican|argentinian|colombian|chilean|"
    r"peruvian|portuguese|brazilian|indian|chinese|japanese|korean|dutch|polish|irish|canadian|australian)"
)
_KIN_EN = (
    r"(?:(?:older|younger|elder|little|big|twin|only|best|oldest|youngest|late) )?"
    r"(?:wife|husband|partner|spouse|girlfriend|boyfriend|fiancee?|son|daughter|kid|child|baby|brother|sister|twin|mother|"
    r"mom|mum|"
    r"father|dad|grandmother|grandma|grandfather|grandpa|aunt|uncle|cousin|niece|nephew|dog|cat|pet|horse|parrot|rabbit|"
    r"hamster|"
    r"puppy|kitten|friend|boss|manager|colleague|roommate|flatmate|neighbou?r|parents|children|kids|sons|daughters|brothers|"
    r"sisters|"
    r"twins|dogs|cats|grandparents|stepson|stepdaughter|son-in-law|daughter-in-law|mother-in-law|father-in-law)"
)
_EVENT_EN = (
    r"(?:(?:final|next|thesis|project|math|maths|driving|job|wedding|doctor'?s|dentist'?s?|return|oral|first|last|main|own|"
    r"\w{3,14}) )?"
    r"(?:exams?|deadline|interview|wedding|flight|appointment|thesis|presentation|test|due date|birthday|anniversary|trip|"
    r"holiday|"
    r"vacation|surgery|report|essay|defen[cs]e|marathon|concert|meeting)"
)
_WHEN_EN = (
    r"(?:(?:due |scheduled )?(?:on|at|in|by|for|next|tomorrow|tonight|this|the \d|today|"
    r"(?:mon|tues|wednes|thurs|fri|satur|sun)day|january|february|march|april|may|june|july|august|september|october|november|"
    r"december|\d))"
)
_ILL_EN = (
    r"(?:type [12] diabetes|diabetes|asthma|epilepsy|celiac disease|coeliac disease|adhd|add|dyslexia|arthritis|migraines?|"
    r"high blood pressure|hypertension|insomnia|[a-z]{3,14} allerg(?:y|ies)|allergies|lactose intolerance|a bad back|anxiety)"
)
_LANG = (
    r"(?:english|spanish|french|german|italian|portuguese|catalan|galician|basque|dutch|polish|russian|chinese|japanese|"
    r"korean|arabic|"
    r"espanol|castellano|ingles|frances|aleman|italiano|portugues|catala|catalan|gallego|euskera|ruso|chino|japones|arabe)"
)
_POINTING_EN = (
    r"(?!(?:it|this|that|these|those|them|you|your|yours|him|her|what|how|where|when|why|who|if|the (?:idea|answer|first|"
    r"second|third|"
    r"last|latter|former|way|one|ones|sound|look|new|other|result|previous)|both|all of|option|either|neither|an answer|"
    r"not to know)\b)"
)
_LIKE_EN = r"(?:really |absolutely |usually |always |generally |strongly |much |also |just |particularly |especially |do ){0,2}"
_ADDRESS_EN = (
    r"(?:answer|reply|respond|speak|talk|write|use|give|explain|call|address|format|include|avoid|keep|start|end|show|add)"
)

ENGLISH: Final = tuple(
    re.compile(pattern)
    for pattern in (
        # names
        rf"(?i:my (?:full |first |last |given |family |middle )?(?:name|surname|nickname)(?: is|'s)) (?:{_NAME}|{_LOW_NAME})",
        rf"(?i:(?:i'?m|i am) called|(?:please )?(?:you can |you may |just )?call me|(?:people|friends|everyone|"
        rf"they all) calls? me) {_NAME}",
        rf"(?i:(?:i'm|i am)) (?!(?i:ok|okay|sorry|fine|done|not|afraid|sure|here|back|new|lost|stuck|using|trying|"
        rf"looking)\b){_NAME}{_END}",
        r"(?i:my pronouns are) ",
        # where
        rf"(?i:i (?:currently |still |now )?(?:live|reside)|(?:i'm|i am) (?:currently |now )?(?:living|based)|i grew up|"
        rf"i was born)"
        rf"(?i: in| near| at| on| outside| close to) {_PLACE}",
        r"(?i:i (?:currently |still |now )?live (?:alone|by myself|with (?:my|two|three|a)\b))",
        r"(?i:i was born on |i was born in \d{4})",
        rf"(?i:(?:i'm|i am) (?:originally )?from) {_PLACE}",
        rf"(?i:i(?:'ve| have)? (?:just |recently )?moved to|(?:i'm|i am) moving to) {_PLACE}",
        r"(?i:my (?:home )?(?:address|city|hometown|home town|time ?zone|country|birthplace|nationality|native language|"
        r"mother tongue|"
        r"first language|job|profession|occupation|job title|company|employer|birthday|date of birth|age|shoe size|blood type|"
        r"zodiac sign|operating system|editor|native tongue) (?:is|are)) (?!(?i:not|what|very|so|too|wrong|missing|shown)\b)\S",
        # work and studies
        r"(?i:i (?:currently |now |mostly |usually |also )?work (?:as|at|for|in|from|with|night shifts|nights|part[- ]time|"
        r"full[- ]time|remotely))\b",
        r"(?i:(?:i'm|i am) (?:currently )?working (?:as|at|for|in|from home))\b",
        r"(?i:i(?:'ve| have) (?:worked|been working) (?:as|at|for|in|with))\b",
        rf"(?i:(?:i'm|i am) (?:also )?(?:an?|the) (?:[\w-]{{2,20}} ){{0,4}}?{_ROLES_EN})\b",
        rf"(?i:(?:i'm|i am) (?:a )?(?:strictly |strict |happily |currently |newly |recently |half |severely |"
        rf"legally )?{_STATES_EN})"
        rf"(?=$|[,.;]|(?i: and\b| with\b| to\b| but\b| from\b| since\b| so\b))",
        r"(?i:(?:i'm|i am) (?:almost |nearly )?\d{1,3}(?: years old| years of age)?)(?=$|,|;| and\b)",
        r"(?i:i (?:study|studied|teach|taught|graduated) (?!(?:it|this|that|the (?:code|docs?|problem|error|logs?))\b)\w)",
        r"(?i:(?:i'm|i am) (?:currently )?(?:studying|learning|training for|preparing for|saving for|writing an? (?:novel|"
        r"book|thesis)))\b",
        r"(?i:i(?:'ve| have) been (?:learning|studying) )",
        r"(?i:i (?:own|run|founded|co-founded|manage) (?:an?|my own|the|two|three) (?:[\w-]{2,20} ){0,2}?(?:bakery|shop|"
        r"store|company|"
        r"restaurant|startup|farm|business|cafe|bar|team|hotel|school|studio|agency|blog|bookshop|house|car|motorbike|boat))\b",
        # what one likes
        rf"(?i:i {_LIKE_EN}(?:prefer|love|like|enjoy|hate|dislike|adore|can'?t stand|cannot stand|detest) {_POINTING_EN})\S",
        rf"(?i:i (?:do not|don'?t|never|no longer|can'?t|cannot) (?:really |usually )?(?:like|enjoy|eat|drink|speak|drive|"
        rf"smoke|drink|wear|tolerate) {_POINTING_EN})\S",
        r"(?i:i (?:do not|don'?t|never|no longer) (?:smoke|drive|drink)(?: alcohol)?)(?=$|,)",
        r"(?i:i (?:only |usually |always |mostly |mainly |never )(?:eat|drink|use|wear|drive|read|write|program|"
        r"code) )(?!(?i:it|this|that)\b)",
        rf"(?i:i (?:can )?speak (?:fluent |native |some |a little |only |both )?{_LANG})\b",
        r"(?i:my (?:favou?rite|preferred|least favou?rite) [\w -]{2,40} (?:is|are) )(?!(?i:not|what)\b)",
        r"(?i:i play (?:the )?(?:piano|guitar|violin|drums|bass|cello|flute|football|soccer|tennis|chess|basketball|padel|"
        r"golf|rugby|hockey))\b",
        # whom one has
        rf"(?i:my {_KIN_EN}(?:'s| is| are|'s name is|s' names are| is called| are called| is named| are named)) (?:called |"
        rf"named )?{_NAME}{_END}",
        rf"(?i:my {_KIN_EN}(?:'s name is| is called| are called| is named| are named)) \w",
        rf"(?i:my {_KIN_EN} (?:is|are) (?:an? (?:[\w-]+ ){{0,2}}?{_ROLES_EN}|{_STATES_EN}|allergic to|"
        rf"\d{{1,3}}(?: years old)?))(?=$|\W)",
        rf"(?i:my {_KIN_EN} (?:lives?|works?|stud(?:y|ies)|speaks?|turns?|was born|loves?|hates?|likes?|plays?|"
        rf"has {_ILL_EN})) ?\S?",
        rf"(?i:(?:i have|i've got) (?:an?|one|two|three|four|five|six|seven|no|"
        rf"\d{{1,2}}) (?:[\w-]+ ){{0,3}}?{_KIN_EN})\b(?! (?i:who|that) (?i:said|says))",
        rf"(?i:(?:i'm|i am) (?:a )?(?:married to|the (?:mother|father|parent) of)|(?:i have|i've got) (?:{_ILL_EN}|"
        rf"an? {_ILL_EN}))\b",
        r"(?i:(?:i'm|i am) (?:severely |very |highly |mildly |also |deathly )?(?:allergic|intolerant|sensitive) to )\w",
        r"(?i:i was diagnosed with |i suffer from |my allergies are )",
        r"(?i:i have an? (?:severe |mild |bad )?allergy to )",
        # when
        rf"(?i:my {_EVENT_EN} (?:is|are|starts|begins|ends|takes place|falls) {_WHEN_EN})\b",
        rf"(?i:(?:i have|i've got|i have got) (?:an?|my|the) {_EVENT_EN}\b[^,]{{0,60}}? {_WHEN_EN})\b",
        rf"(?i:the deadline (?:for|of) my [\w ]{{2,40}} is {_WHEN_EN})\b",
        r"(?i:(?:i'm|i am) getting married (?:in|on|next|this) )",
        # how one wants to be answered
        rf"(?i:(?:please |from now on,? |going forward,? |in (?:the )?future,? )*(?:always|never) {_ADDRESS_EN})\b",
        rf"(?i:(?:from now on|going forward|in (?:the )?future),? (?:please )?{_ADDRESS_EN})\b",
        rf"(?i:(?:please )?(?:answer|reply|respond|speak|talk)(?: to)?(?: me)? (?:only )?in {_LANG}(?: (?:please|only|"
        rf"from now on|always))?)$",
    )
)

_ROLES_ES = (
    r"(?:enfermer[oa]|profesora?|maestr[oa]|medic[oa]|doctora?|cirujan[oa]|ingenier[oa]|desarrolladora?|programadora?|"
    r"estudiante|"
    r"abogad[oa]|disenadora?|escritora?|periodista|cientific[oa]|investigadora?|arquitect[oa]|gerente|cociner[oa]|panader[oa]|"
    r"conductora?|camioner[oa]|electricista|fontaner[oa]|plomer[oa]|carpinter[oa]|mecanic[oa]|music[oa]|cantante|pianista|"
    r"artista|pintora?|actor|actriz|contable|contadora?|analista|economista|agricultora?|ganader[oa]|piloto|fotograf[oa]|"
    r"traductora?|interprete|terapeuta|psicolog[oa]|dentista|veterinari[oa]|farmaceutic[oa]|bibliotecari[oa]|consultora?|"
    r"autonom[oa]|emprendedora?|empresari[oa]|fundadora?|catedratic[oa]|principiante|viud[oa]|madre|padre|abuel[oa]|bomber[oa]|"
    r"soldado|camarer[oa]|meser[oa]|biolog[oa]|quimic[oa]|fisic[oa]|matematic[oa]|administrativ[oa]|funcionari[oa]|policia|"
    r"opositora?|jubilad[oa]|pensionista|corredora?|ciclista|peluquer[oa]|albanil|comercial|secretari[oa])"
)
_STATES_ES = (
    r"(?:vegan[oa]|vegetarian[oa]|celiac[oa]|diabetic[oa]|asmatic[oa]|zurd[oa]|daltonic[oa]|sord[oa]|cieg[oa]|dislexic[oa]|"
    r"bilingue|"
    r"autista|musulman[a]?|judi[oa]|catolic[oa]|espanola?|aleman[a]?|frances[a]?|italian[oa]|ingles[a]?|american[oa]|"
    r"mexican[oa]|"
    r"argentin[oa]|colombian[oa]|chilen[oa]|peruan[oa]|venezolan[oa]|ecuatorian[oa]|cuban[oa]|uruguay[oa]|brasilen[oa]|"
    r"intolerante a (?:la lactosa|el gluten)|intolerante al gluten|solter[oa]|pelirroj[oa])"
)
_KIN_ES = (
    r"(?:espos[oa]|mujer|marido|pareja|novi[oa]|hij[oa]s?|bebe|herman[oa]s?|madre|padres?|mama|papa|abuel[oa]s?|ti[oa]s?|"
    r"prim[oa]s?|"
    r"sobrin[oa]s?|perr[oa]s?|gat[oa]s?|mascotas?|caballo|loro|conejo|suegr[oa]s?|cunad[oa]s?|niet[oa]s?|gemel[oa]s?|"
    r"mejor amig[oa]|"
    r"jef[ea]|companer[oa] de piso|vecin[oa]|yerno|nuera)(?: mayor| menor| pequen[oa]| mayores| menores)?"
)
_EVENT_ES = (
    r"(?:(?:proximo |proxima |ultimo |ultima |primer |primera )?(?:examen|examenes|entrega|plazo|boda|vuelo|cita|entrevista|"
    r"tesis|"
    r"defensa|presentacion|viaje|cumpleanos|aniversario|operacion|reunion|vacaciones|oposicion|maraton|mudanza)"
    r"(?: (?:final|de [\w ]{2,30}|del [\w ]{2,30}|con [\w ]{2,30}|medica))?)"
)
_WHEN_ES = (
    r"(?:(?:el|la|en|este|esta|manana|hoy|pasado manana|a las|dentro de|para|proximo|lunes|martes|miercoles|jueves|viernes|"
    r"sabado|"
    r"domingo)\b|\d)"
)
_ILL_ES = (
    r"(?:alergias? (?:a|al|a la|a los)|intolerancia (?:a|al)|diabetes|asma|epilepsia|celiaquia|tdah|dislexia|artritis|"
    r"migranas?|"
    r"hipertension|la tension alta|insomnio|ansiedad)"
)
_POINTING_ES = (
    r"(?!(?:est[aeo]s?|es[aeo]s?|aquell[ao]s?|tus?|su respuesta|la (?:idea|respuesta|primera|segunda|ultima)|el (?:primero|"
    r"segundo|"
    r"ultimo|resultado)|como (?:lo|has|te|queda|suena)|lo que|cuando|donde|si|que (?:hayas|me hayas|lo)|mucho (?:tu|esta|"
    r"este|eso|lo que)|"
    r"no saber|la opcion|la que|el que|y|pero|mas (?:esta|este|la primera|la segunda))\b)"
)
_ANSWER_ES = (
    r"(?:responde|contesta|habla|escribe|respondeme|contestame|hablame|escribeme|usa|utiliza|explica|explicame|llamame|"
    r"trata|tratame|"
    r"incluye|evita|dame|da|se (?:breve|conciso|concisa)|muestra|anade)"
)

SPANISH: Final = tuple(
    re.compile(pattern)
    for pattern in (
        # names
        rf"(?i:(?:yo )?me llamo|mi (?:nombre|apellido|apodo)(?: completo| de pila)? es|mis apellidos son|"
        rf"me apellido) (?:{_NAME}|{_LOW_NAME})",
        rf"(?i:(?:por favor,? )?(?:puedes llamarme|llamame|me (?:dicen|llaman)|todos me (?:dicen|llaman)|"
        rf"mis amigos me (?:dicen|llaman))) {_NAME}",
        rf"(?i:(?:yo )?soy) {_NAME}{_END}",
        # where
        rf"(?i:(?:yo )?(?:ahora |actualmente |todavia )?(?:vivo|resido|estoy viviendo|creci|naci|me crie))(?i: en| cerca de|"
        rf" fuera de| a las afueras de) {_PLACE}",
        r"(?i:(?:yo )?(?:ahora |actualmente )?vivo (?:sol[oa]|con (?:mi|mis|una?|dos|tres))\b)",
        r"(?i:naci (?:el|en) (?:\d|enero|febrero|marzo|abril|mayo|junio|julio|agosto|septiembre|octubre|noviembre|diciembre))",
        r"(?i:(?:yo )?soy (?:originalmente |natural )?de|vengo de) (?:la |el |un |una )?(?:[A-Z]|pueblo\b|ciudad\b)",
        rf"(?i:(?:yo )?(?:acabo de mudarme|me (?:acabo de )?mud[eo]|me he mudado|me voy a mudar|me voy a vivir) a) {_PLACE}",
        r"(?i:mi (?:ciudad|direccion|pais|pueblo|zona horaria|lengua materna|idioma materno|nacionalidad|trabajo|profesion|"
        r"oficio|empresa|"
        r"puesto|cumpleanos|fecha de nacimiento|edad|grupo sanguineo|signo|editor|sistema operativo|talla) (?:es|"
        r"son)) (?!(?i:no|que|muy|tan)\b)\S",
        # work and studies
        r"(?i:(?:yo )?(?:ahora |actualmente |tambien |normalmente )?trabajo (?:como|de|en|para|con|desde|por|a media|"
        r"a tiempo))\b(?! (?i:ello|eso|esto)\b)",
        r"(?i:(?:yo )?(?:estoy trabajando (?:como|de|en|para)|llevo [\w ]{2,20} (?:anos|meses) (?:trabajando|viviendo|"
        r"estudiando|aprendiendo)|"
        r"me dedico a(?:l)?|doy clases de|curso|estudio (?!(?:esto|eso|el (?:error|codigo|problema))\b)|estudie|"
        r"ensen[oe]))\b ?\S",
        rf"(?i:(?:yo )?soy (?:una? )?(?:buen[a]? |joven )?{_ROLES_ES})\b",
        rf"(?i:(?:yo )?soy (?:una? )?(?:muy |estrictamente |medio |totalmente )?{_STATES_ES})(?=$|[,;]|(?i: y\b| desde\b|"
        rf" con\b| pero\b| de\b| por\b))",
        r"(?i:(?:yo )?soy (?:duen[oa]|propietari[oa]|fundadora?|director[a]?|jef[ea]|el duen[o]) de )",
        r"(?i:(?:yo )?estoy (?:casad[oa]|divorciad[oa]|solter[oa]|jubilad[oa]|embarazada|viud[oa]|en paro|desemplead[oa]|"
        r"prometid[oa]))\b",
        r"(?i:(?:yo )?tengo (?:casi )?\d{1,3} anos)\b",
        r"(?i:(?:yo )?(?:estoy aprendiendo|estoy estudiando|me estoy preparando|me preparo para|estoy preparando (?:las? |"
        r"el |un )?(?:oposicion|maraton|examen)|"
        r"estoy escribiendo (?:una novela|un libro|mi tesis|una tesis)|estoy ahorrando para))",
        # what one likes
        r"(?i:(?:yo )?(?:siempre |normalmente |generalmente |tambien )?prefiero )(?!(?i:est[aeo]|es[aeo]|la (?:primera|"
        r"segunda)|el (?:primero|segundo)|no (?:responder|decir|saber))\b)\S",
        rf"(?i:(?:a mi )?(?:no |tambien |siempre )?me (?:gustan?|encantan?|molestan?|disgustan?|apasionan?|chiflan?|"
        rf"flipan?)(?: mucho| muchisimo| bastante| mas)? {_POINTING_ES})\S",
        rf"(?i:(?:yo )?(?:odio|detesto|adoro|no soporto|no aguanto) {_POINTING_ES})\S",
        r"(?i:(?:yo )?(?:no|nunca) (?:bebo|tomo|consumo|hablo|conduzco|manejo|fumo|como (?:carne|pescado|marisco|gluten|"
        r"lacteos|huevos?|cerdo|"
        r"azucar|nada|pan|frutos|queso|picante|verduras?|fruta|cebolla|ajo)|puedo (?:comer|beber|tomar)))\b",
        r"(?i:(?:yo )?(?:solo|siempre|normalmente|casi siempre|nunca) (?:como|bebo|uso|utilizo|llevo|leo|programo|escribo) )\S",
        rf"(?i:(?:yo )?hablo (?:bien |un poco de |algo de |solo )?{_LANG})\b",
        r"(?i:mi [\w ]{2,30} (?:favorit[oa]|preferid[oa])s? (?:es|son) |mis [\w ]{2,30} (?:favorit|preferid)[oa]s son )",
        r"(?i:(?:yo )?(?:toco (?:el|la) (?:piano|guitarra|violin|bateria|bajo|flauta)|juego (?:al|a las?) (?:futbol|tenis|"
        r"padel|ajedrez|baloncesto|golf|cartas|rugby)))\b",
        # whom one has
        rf"(?i:(?:mi|mis) {_KIN_ES} (?:se llaman?|viven?|trabajan?|estudian?|hablan?|cumplen?|nacio|odian?|juegan?|"
        rf"tienen? (?:\d{{1,3}}|un|dos|tres|"
        rf"cuatro|cinco|seis|siete|ocho|nueve|diez) anos|tienen? {_ILL_ES}))\b",
        rf"(?i:(?:mi|mis) {_KIN_ES} (?:es|son)) (?:{_NAME}{_END}|(?i:(?:una? )?(?:{_ROLES_ES}|{_STATES_ES}|"
        rf"alergic[oa]s? a))\b)",
        rf"(?i:a mi {_KIN_ES} (?:no )?le (?:gustan?|encantan?) )",
        rf"(?i:(?:yo )?(?:no )?tengo (?:una?|dos|tres|cuatro|cinco|seis|siete|\d{{1,2}})? ?(?:[\w-]+ )?{_KIN_ES})\b",
        rf"(?i:(?:yo )?(?:tengo|padezco|sufro|sufro de|padezco de|me han diagnosticado) {_ILL_ES})",
        r"(?i:(?:yo )?(?:soy (?:muy )?(?:alergic[oa]|intolerante)|tengo alergia) (?:a|al|a la|a los) ?)\w",
        # when
        rf"(?i:mis? {_EVENT_ES} (?:es|son|vence|sale|empiezan?|terminan?|sera|seran|cae) {_WHEN_ES})",
        rf"(?i:(?:yo )?tengo (?:una?|el|la|mi) {_EVENT_ES}(?: [\w ]{{1,40}}?)? {_WHEN_ES})",
        rf"(?i:(?:el plazo|la fecha) (?:de|para) (?:mi|entregar mi) [\w ]{{2,40}} (?:es|vence|termina|acaba) {_WHEN_ES})",
        r"(?i:me caso (?:en|el|este|dentro) )",
        # how one wants to be answered
        rf"(?i:(?:por favor,? )?(?:siempre {_ANSWER_ES}|{_ANSWER_ES} siempre)\b)",
        r"(?i:(?:por favor,? )?nunca (?:uses|me|respondas|contestes|incluyas|hables|escribas)\b)",
        rf"(?i:(?:a partir de ahora|de ahora en adelante|desde ahora|"
        rf"en adelante),? (?:por favor,? )?(?:siempre )?(?:no )?(?:{_ANSWER_ES}|uses|quiero que))\b",
        rf"(?i:(?:por favor,? )?(?:responde|contesta|habla|respondeme|contestame|hablame|escribeme) (?:solo |"
        rf"siempre )?en {_LANG}(?:,? por favor| siempre)?)$",
        r"(?i:(?:por favor,? )?(?:tratame de (?:tu|usted)|tuteame|hablame de (?:tu|usted)))",
    )
)
