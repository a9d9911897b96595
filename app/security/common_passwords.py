"""The passwords that are guessed first: whole ones, and stems to which people hang digits and punctuation. Data only.

Short ones are left out: `app.security.passwords` refuses whatever has fewer than eight characters anyway. All case-folded.
"""

from __future__ import annotations

from typing import Final


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


COMMON_STEMS: Final = _words(
    """
    abc abcd abcdef abcdefg abcdefgh abril access admin administrador administrator agosto alejandra alejandro america
    amigos andrea android angel antonio apple april argentina arsenal asdfgh asdfghjkl ashley august autumn azerty banana
    barcelona baseball basketball batman bendicion bienvenida bienvenido bienvenue blessed business buster butterfly
    cambiame carlos changeit changeme charlie chatgpt cheese chelsea chivas chocolate clave coffee colombia company
    computadora computer contrasena contrasenya contraseña cookie corazon corvette cristo daniel database december default
    demo diciembre dios dragon empresa enero espana estrella facebook familia family febrero february fernando ferrari
    flower football forever fortnite francisco freedom friday friends futbol garfield ginger google guest harley haslo
    heaven hello hellohello helloworld hockey holamundo hunter iloveyou instagram internet invierno invitado iphone
    january jennifer jessica jesus jesuschrist jesusteamo jetaime julio july june junio juventus killer learning letmein
    letmeinnow libertad linkedin liverpool llm login logmein lovely loveme lover lozinka machine madrid manchester march
    maria mariposa marzo master matrix mayo mercedes mexico michael mickey microsoft miguel minecraft minnie model monday
    monkey motdepasse mustang mysql naruto ninja november noviembre october octubre office oficina openai oracle otoño
    p@ssw0rd p@ssword pa55w0rd pa55word parola parool pass passphrase passw0rd passwd password passwort pepper pikachu
    pokemon porsche postgres primavera princesa princess princesse qazwsx qazwsxedc qwerty qwertyuiop qwertz ranger
    realmadrid redis roberto roblox root salasana samsung santiago sebastian secret secret123 secreta secreto senha
    september septiembre server servidor sexy shadow snoopy soccer spiderman spring starwars summer sunshine superman
    superuser sysadmin teamo teamomucho tennis tequiero test tester testing thomas tigger toyota training trustno twitter
    user usuario valentina verano wachtwoord welcome whatever willkommen windows winter yamaha youtube zxcvbn zxcvbnm
    """
)
"""Refused alone and with up to eight digits, spaces and punctuation marks around them."""

COMMON_PASSWORDS: Final = _words(
    """
    00000000 000000000000 0123456789 0987654321 11111111 111111111111 11223344 1122334455 112233445566 123123123
    123123123123 123321123321 12341234 123412341234 12345678 123456789 1234567890 123456789012 12345678910 1234567891011
    123654789 147258369 147258369147 159753159753 1q2w3e4r 1q2w3e4r5t 1q2w3e4r5t6y 1q2w3e4r5t6y7u8i 1qaz2wsx 1qaz2wsx3edc
    1qaz2wsx3edc4rfv 1qazxsw2 1qazxsw23edc 741852963 789456123 789456123000 87654321 987654321 9876543210 a12345678
    a123456789 a1234567890 a1b2c3d4 a1b2c3d4e5 a1b2c3d4e5f6 aa12345678 aa123456789 abc123456789 abc123abc123 abcabcabcabc
    abcd1234 abcd12345678 abcdefgh1234 abracadabra abretesesamo admin123admin adminadmin adminadmin123 adminadminadmin
    administrator1 administrator123 adminpassword amordemivida amormio12345 aprendiz12345 argentina10
    artificialintelligence asdf1234 asdfasdf asdfasdfasdf asdfghjkl asdfghjkl123 asdfqwer asdfqwer1234 averylongpassword
    azerty123456 azertyuiop azertyuiop123 barcelona123 baseball1234 basketball123 batman123456 battery-staple bayern123456
    bayernmunich bendiciones1 bonjour12345 brasil123456 buenosaires1 buenosdias123 changeme12345 changemenow
    changemeplease changepassword changethis charlie12345 chatgpt12345 ciaociaociao clave12345678 clavesecreta
    colombia1234 computer1234 contrasena1234 contrasenasegura contraseña123 contraseñasegura corinthians1
    correct-horse-battery-staple correcthorsebatterystaple cristiano7 cristianoronaldo cristoteama deeplearning
    default12345 defaultadmin defaultpassword deutschland1 diosesamor diosesamor123 diosteama1234 docker123456 donotforget
    dontforget123 dragonball dragonballz dragonballz123 elasticsearch facebook1234 facebook12345 fcbarcelona fcbarcelona10
    flamengo1234 football1234 forgotpassword forzanapoli1 fuckoff123 fuckyou123 fuckyoufuckyou gitlab123456 goodpassword
    google123456 googlechrome hallohallo123 hola12345678 holaholahola holamundo123 huggingface idontknow123
    iforgotmypassword ihatepasswords ilovejesus ilovemyfamily ilovemymom ilovemyself iloveyou1234 iloveyou12345 iloveyou2
    iloveyoubaby iloveyouforever iloveyouso iloveyousomuch initial12345 initialpassword internet1234 internetexplorer
    jenkins12345 jennifer1234 jesusesmipastor jetaimejetaime jordan232323 juventus1897 kubernetes languagemodel
    largelanguagemodel leomessi10 letmein123456 letmeinplease linuxlinux lionelmessi liverpoolfc llama12345678
    longpassword longpassword1 lovelovelove loveme123456 loveyou123 loveyouforever machinelearning manchesterunited
    manutd123456 maytheforcebewithyou messi10messi mexico123456 miamorerestu michael12345 michaeljackson michaeljordan
    miclave12345 miclavesecreta micontrasena micontraseña micontraseña123 microsoft123 mifamilia123 migatito1234
    minecraft123 minecraft1234 miperrito123 mivida123456 motdepasse123 mypassword mypassword1 mypassword123 mysqlmysql
    naruto123456 newpassword newpassword1 newpassword123 nopassword nopassword123 nothing12345 openaiopenai opensesame
    oracleoracle palmeiras123 pass1234 pass12345678 password123password password1password passwordadmin passwordforgotten
    passwordpassword passwort1234 passwort12345 pokemon12345 pokemon123456 postgrespostgres princess1234 q1w2e3r4
    q1w2e3r4t5 q1w2e3r4t5y6 qazwsxedc123 qazwsxedcrfv quickbrownfox qwe123qwe123 qweasdzxc qweasdzxc123 qweqweqwe
    qweqweqweqwe qwer1234 qwer1234qwer qwerty12345 qwerty123456 qwerty1234567890 qwertyqwerty qwertyqwerty123 qwertyui
    qwertyuiop qwertyuiop123 raspberry123 raspberrypi realmadrid123 redisredis ronaldo7ronaldo rootmysql rootpassword
    rootroot rootrootroot samsung12345 samsunggalaxy schalke04 secretpassword secure123456 securepassword security1234
    senha1234567 senhasenha123 soleil123456 something123 spiderman123 startrek123 starwars123 strongpass123 strongpassword
    strongpassword1 sunshine1234 superadmin123 supercalifragilisticexpialidocious superman1234 supersecret supersecret123
    superuser1234 sysadmin1234 sysadminsysadmin teamoamor1234 teamomucho123 teamoteamo temp12345678 temporal1234
    temporary123 temppassword tequieromucho tequierotanto test1234test testpassword testtest testtesttest thepassword
    thequickbrownfox thequickbrownfoxjumps thispassword tobeornottobe toortoor topsecret topsecret123 trustno1
    trustno1trustno1 trustnoone ubuntu123456 unbelievable verysecure123 verysecurepassword vivaespana123 vivamexico123
    wachtwoord123 welcome123456 welcomeback welcomehome welcomewelcome welkom123456 whatever123 willkommen123
    windowsserver yourpassword zaq12wsx zaq1xsw2 zaq1xsw2cde3 zaq1zaq1 zxcvasdfqwer zxcvbnm123 zxcvbnm1234 zxcvzxcv
    """
)
"""Refused as they stand, with or without spaces between their words."""
